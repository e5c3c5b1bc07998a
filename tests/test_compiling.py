"""Without Numba everything runs, slowly, with the same results: each is compared with what compiled code or eager gives."""

import json
import subprocess
import sys
from typing import Any

import numba
import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from finemoe import compiling
from finemoe.models.shipped import resolve
from finemoe.paths import ROOT
from tests import uncompiled

pytestmark = pytest.mark.timeout(300)  # without a compiler


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, cwd=ROOT)


def test_no_token_waits_for_the_compiler():
    """All that a policy runs with is compiled when its engine is made."""
    program = """
import sys
import finemoe
from numba.core.dispatcher import Dispatcher
from tests.runtime.models import build, padded_batch

def compiled():
    modules = [module for name, module in sys.modules.items() if name.startswith("finemoe")]
    loops = {value for module in modules for value in vars(module).values() if isinstance(value, Dispatcher)}
    return {loop.__name__: len(loop.signatures) for loop in loops if loop.signatures}

for policy in ("mixtral-offloading", "on-demand", "moe-infinity", "promoe", "finemoe"):
    model = build("mixtral")
    with finemoe.offload(model, 0.3, policy, asynchronous=False) as engine:
        before = compiled()
        model.generate(**padded_batch(), max_new_tokens=3, do_sample=False)
        print(policy, sorted(set(compiled().items()) - set(before.items())))
"""
    done = run("-W", "ignore", "-c", program)
    assert done.stdout.count("[]") == 5, done.stdout


@pytest.fixture(scope="module")
def without_numba() -> dict[str, Any]:
    """What `uncompiled` gives where Numba cannot be imported."""
    return json.loads(run("-m", "tests.uncompiled").stdout.splitlines()[-1])


def test_loops_are_compiled_where_numba_is():
    def double(number: int) -> int:
        return 2 * number

    assert compiling.IS_COMPILED
    assert [compiling.njit(double)(3), compiling.njit(nogil=True)(double)(3)] == [6, 6]
    assert numba.extending.is_jitted(compiling.njit(double))
    assert compiling.njit(nogil=True)(double).targetoptions["nogil"]


def test_without_numba_one_warning_says_what_that_means():
    program = (
        "import sys; sys.modules['numba'] = None; import finemoe.simulation.clockwork, finemoe.maps.kernels, finemoe.policies"
    )
    done = run("-c", f"{program}; from finemoe.compiling import IS_COMPILED; print(IS_COMPILED)")
    assert done.stdout == "False\n"
    assert done.stderr.count("RuntimeWarning") == done.stderr.count("Numba cannot be imported (ModuleNotFoundError:") == 1
    assert "hundreds of times slower" in done.stderr


def test_a_numba_that_fails_for_any_reason_is_no_numba(tmp_path):
    (tmp_path / "numba.py").write_text("raise AttributeError('numpy has no such thing any more')")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from finemoe.compiling import IS_COMPILED; print(IS_COMPILED)"
    done = run("-c", program)
    assert done.stdout == "False\n"
    assert "(AttributeError: numpy has no such thing any more)" in done.stderr


def test_an_interrupt_does_not_leave_numba_half_imported():
    program = """
import os, signal, sys
signals = [signal.SIGINT]

def interrupt(event, args):
    if event == "import" and args[0] == "numba.core.types" and signals:
        os.kill(os.getpid(), signals.pop())

sys.addaudithook(interrupt)
try:
    import finemoe.compiling
except KeyboardInterrupt:
    from finemoe.compiling import IS_COMPILED, njit
    print(IS_COMPILED, njit(lambda number: 2 * number)(3))
"""
    assert run("-W", "error", "-c", program).stdout == "True 6\n"


def test_importing_finemoe_needs_no_numba():
    run("-W", "error", "-c", "import sys; sys.modules['numba'] = None; import finemoe, finemoe.cli")


def test_an_uncompiled_transition_is_whole_too():
    program = """
import os, signal, sys
sys.modules["numba"] = None
from finemoe.native import transition
done = []
@transition
def step():
    os.kill(os.getpid(), signal.SIGINT)
    done.append("whole")
try:
    step()
except KeyboardInterrupt:
    print(done)
"""
    assert run("-W", "ignore", "-c", program).stdout == "['whole']\n"


def test_where_numba_is_told_not_to_compile_experts_move_all_the_same():
    program = """
import os
os.environ["NUMBA_DISABLE_JIT"] = "1"
import finemoe
from tests.runtime.models import build, padded_batch
model, batch = build("mixtral"), padded_batch()
expected = model.generate(**batch, max_new_tokens=3, do_sample=False)
with finemoe.offload(model, 0.3, "on-demand") as engine:
    assert model.generate(**batch, max_new_tokens=3, do_sample=False).equal(expected)
    print(engine.report().misses > 0)
"""
    assert run("-W", "ignore", "-c", program).stdout == "True\n"


def test_uncompiled_functions_are_as_they_were(monkeypatch):
    def double(number: int) -> int:
        return 2 * number

    monkeypatch.setattr(compiling, "IS_COMPILED", False)
    assert compiling.njit(double) is double
    assert compiling.njit(cache=True, nogil=True)(double) is double


def test_replays_are_the_same(without_numba):
    assert without_numba["replays"] == uncompiled.replays()


def test_loops_give_the_same_bits(without_numba):
    expected = uncompiled.kernels()
    assert expected["selected"] == np.maximum(expected["thresholds"], 3).tolist()  # in double precision
    assert without_numba["kernels"] == expected


@pytest.mark.parametrize("policy", ["on-demand", "finemoe"])
def test_an_offloaded_miniature_is_bit_equal_to_eager(without_numba, policy):
    model = AutoModelForCausalLM.from_pretrained(resolve("qwen-mini"), experts_implementation="eager")
    assert without_numba[policy] == uncompiled.generated(model)
