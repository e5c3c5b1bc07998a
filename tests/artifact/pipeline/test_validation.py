"""The prediction of live runs and the breakdown of an iteration: what must hold whatever the machine's speed."""

import numpy as np
import pytest

from finemoe.artifact.pipeline.live_breakdown import measured_breakdown
from finemoe.artifact.pipeline.validation import Machine, MeasuredPace, measure_machine, validation_table
from finemoe.paths import MINIATURES
from finemoe.runtime.loading import load_model
from finemoe.runtime.recorder import record
from finemoe.simulation.events import demanded_sets, iteration_blocks
from finemoe.traces import RoutingTrace
from tests.simulation.golden import FILE

pytestmark = pytest.mark.timeout(300)  # live runs

MODEL = str(MINIATURES / "mixtral-mini")
PROMPTS = ["What is a list?", "Tell me about rivers.", "How do I sort names?"]


@pytest.fixture(scope="module")
def history() -> RoutingTrace:
    model, tokenizer = load_model(MODEL)
    return record(model, PROMPTS[1:], tokenizer=tokenizer, max_new_tokens=4)


def test_a_measured_pace_spends_what_was_measured():
    """An iteration without loads takes what one with everything resident took, and the policy's own time beside it."""
    trace = RoutingTrace.load(FILE)
    machine = Machine(1000, prefill_s=0.4, decode_s=0.1, expert_s=0.001, engine_s={"finemoe": 0.01}, wake_s=0.0)
    pace = MeasuredPace(machine, "finemoe", load_s=0.005, prefetch_s=0.006, search_s=(0.02, 0.03))
    block = next(iteration_blocks(trace, 100))
    begins, demanded = demanded_sets(trace, block)
    durations = pace.durations(trace, block, begins, demanded, np.zeros((block.num_iterations, 1 + trace.num_layers)))
    experts = np.add.reduceat(durations.expert, begins[:-1])
    per_iteration = (durations.before + experts + durations.after).reshape(block.num_iterations, trace.num_layers).sum(axis=1)
    np.testing.assert_allclose(per_iteration, np.where(block.is_prefill, 0.4, 0.1) + 4 * 0.01)
    assert durations.search.reshape(-1, trace.num_layers, 2)[0, 0].tolist() == [0.02, 0.03]
    assert pace.chunk_s == pytest.approx(0.006 / 5)


@pytest.mark.parametrize("policy", ["on-demand", "finemoe"])
def test_predicted_and_live_runs_serve_the_same_requests(history, policy):
    options = {"history": history, "prefetch_distance": 3}
    machine = measure_machine(MODEL, PROMPTS[1:], 3, ["on-demand", "finemoe"], 1, **options)
    table = validation_table(MODEL, machine, PROMPTS[:1], 3, history, [0.5], [0.25, 0.5], [policy], prefetch_distance=3)
    assert table.expert_memory.tolist() == [0.25, 0.5]
    assert (table[["predicted_tpot_s", "measured_tpot_s", "predicted_ttft_s", "measured_ttft_s"]] > 0).all(axis=None)
    np.testing.assert_allclose(table.error, table.predicted_tpot_s / table.measured_tpot_s - 1)
    if policy == "on-demand":  # what is hit does not depend on how fast anything is
        assert table.predicted_hit_rate.tolist() == table.measured_hit_rate.tolist()


def test_an_iteration_s_parts_are_parts_of_it(history):
    parts = measured_breakdown(MODEL, PROMPTS[:1], 2, history, 0.25, prefetch_distance=3, load_s=0.001)
    assert parts["num_layers"] == 32
    assert all(value >= 0 for value in parts.values())
    assert parts["waiting_ms"] > 1  # three quarters of the experts are not there, and one takes a millisecond
    assert parts["engine_ms_per_layer"] == pytest.approx(parts["engine_ms"] / 32)
