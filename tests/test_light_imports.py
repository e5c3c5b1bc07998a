import subprocess
import sys

import pytest

from tests.simulation.golden import FILE

HEAVY = ("torch", "transformers", "datasets", "pandas", "matplotlib", "sklearn")
COMPILING = ("numba.np.linalg", "numba.np.arraymath", "numba.typed.dictimpl", "scipy.linalg")  # what compiled kernels do without
REPLAY = """
import finemoe
trace = finemoe.RoutingTrace.load({file!r}, mapped=True)
finemoe.replay(trace.split("served"), {policy!r}, 0.25, history=trace.split("history"))
"""


def heavy_modules_after(program: str) -> list[str]:
    code = f"import sys\n{program}\nprint(*[name for name in {HEAVY + COMPILING} if name in sys.modules])"
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


@pytest.mark.parametrize("policy", ["on-demand", "finemoe", "promoe", "mixtral-offloading", "deepspeed-inference"])
def test_a_replay_loads_no_library_that_it_does_not_need(policy):
    """Nor what only compiling needs, once another process has compiled."""
    program = REPLAY.format(file=str(FILE), policy=policy)
    heavy_modules_after(program)
    assert heavy_modules_after(program) == []
