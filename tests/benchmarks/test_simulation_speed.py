"""Virtual time: one (model, dataset, system) cell of Fig. 10, 64 requests of 125 tokens, in seconds (run with `make bench`)."""

import numpy as np
import pytest

from finemoe.artifact.analysis.latency import LATENCY_SYSTEMS
from finemoe.paths import ROOT
from finemoe.simulation.arrangement import Arrangement
from finemoe.simulation.replay import sweep
from finemoe.traces import RoutingTrace

pytestmark = pytest.mark.timeout(900)  # a whole public trace

MODELS = ("mixtral-mini", "qwen-mini", "phi-mini")


def cell_of(model: str) -> tuple[RoutingTrace, RoutingTrace]:
    """History, and 64 requests of 40 prompt and 125 new tokens made of served ones."""
    path = ROOT / "results" / "traces" / f"{model}-questions.trace"
    if not path.is_file():
        pytest.skip("no recorded traces: run `make reproduce` first")
    trace = RoutingTrace.load(path)
    requests = np.zeros(64), np.full(64, 40), np.full(64, 125)
    return trace.split("history"), Arrangement.arriving(trace.split("served"), *requests).trace


@pytest.mark.parametrize("name", [name for name in LATENCY_SYSTEMS if name != "No-offload"])
@pytest.mark.parametrize("model", MODELS)
def test_a_cell_of_figure_10(benchmark, model, name):
    history, served = cell_of(model)
    system = LATENCY_SYSTEMS[name]
    options = {"hardware": "6x-rtx3090", "prefetch_distance": 3, **system.options}
    sweep(served.select([0]), system.policy, [0.25], history=history, **options)  # compiled before it is timed
    benchmark.pedantic(sweep, (served, system.policy, [0.25]), {"history": history, **options}, rounds=1)
    benchmark.extra_info["seconds"] = round(benchmark.stats.stats.min, 2)
