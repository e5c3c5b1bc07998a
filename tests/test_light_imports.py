import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "datasets", "pandas", "matplotlib", "sklearn")


def heavy_modules_after(statement: str) -> list[str]:
    code = f"import sys; {statement}; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    "module",
    ["finemoe", "finemoe.cli", "finemoe.artifact.plotting", "finemoe.artifact.claims", "finemoe.artifact.pipeline.config"],
)
def test_importing_is_light(module):
    assert heavy_modules_after(f"import {module}") == []


@pytest.mark.parametrize("module", ["finemoe.traces", "finemoe.maps.store", "finemoe.policies", "finemoe.intervals"])
def test_deciding_never_needs_torch(module):
    assert not {"torch", "transformers"} & set(heavy_modules_after(f"import {module}"))
