"""What every test may rely on: one thread per process, no network, and the external samples where they exist."""

import os
import signal
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of what a script runs in the background; tests interrupt themselves
    signal.signal(signal.SIGINT, signal.default_int_handler)
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")

import pytest
from hypothesis import settings

from finemoe.paths import ROOT
from tests.parts import NUM_PARTS, commit, part
from tests.runtime.virtual_clock import VirtualClock, VirtualLink

settings.register_profile("finemoe", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("finemoe")


def pytest_report_header() -> str:
    """Which families this run tests, for whoever wants to see it fail again."""
    if os.environ.get("FINEMOE_FAMILIES") == "all":
        return "model families: all"
    return f"model families: part {part(NUM_PARTS)} of {NUM_PARTS}, counted from 0, by commit {commit()[:12] or '(none)'}"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of external sample data; skips the test where it is absent."""
    folder = Path(os.environ.get("FINEMOE_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("external sample data is not here (FINEMOE_SHARED_DATA names its folder)")
    return folder


@pytest.fixture
def clock(monkeypatch) -> VirtualClock:
    """The runtime's clock, made to stand still but for waiting for paced links."""
    clock = VirtualClock()
    for name in ("iteration", "layer_runner", "lease", "memory", "timeline", "worker"):
        monkeypatch.setattr(f"finemoe.runtime.{name}.time", clock)
    monkeypatch.setattr("finemoe.runtime.attachment.make_link", lambda device, rate: VirtualLink(rate, clock))
    return clock
