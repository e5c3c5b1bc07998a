"""Every system, asked about a block of iterations at once, answers what it answers step by step, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest

from finemoe.errors import FinemoeError
from finemoe.policies import POLICIES, make_policy
from finemoe.policies.base import Policy
from finemoe.policies.finemoe import FineMoE
from finemoe.policies.predictions import Predictions
from finemoe.simulation.arrangement import Arrangement
from finemoe.simulation.asking import ask
from finemoe.simulation.events import demanded_sets, iteration_blocks
from finemoe.simulation.replay import replay_setup
from finemoe.traces import RoutingTrace
from tests.simulation.golden import FILE
from tests.test_traces import make_trace

GOLDEN = RoutingTrace.load(FILE)
# Prefills and decode steps of several rows.
BATCHES = Arrangement.side_by_side(make_trace(3, (9, 4, 6, 12, 5), layers=5), 3).trace
PAST = make_trace(4, (30, 40), layers=5)
TRACES = {  # served, history, how far ahead
    "golden": (GOLDEN.split("served"), GOLDEN.split("history"), 2),
    "batches": (BATCHES, PAST, 3),
    "no embeddings": (*(replace(one, embedding_table=None, embedding_index=None) for one in (BATCHES, PAST)), 3),
}
SYSTEMS = {
    **{name: (name, {}) for name in POLICIES},
    "promoe speculative": ("promoe", {"predictor": "speculative"}),
    "finemoe no-semantic": ("finemoe", {"semantic": False}),
}
KNOWING_NOTHING = {"on-demand", "no-offload", "deepspeed-inference", "mixtral-offloading", "promoe speculative"}
LEARNING_BEFOREHAND = {"promoe"}
LEARNING_BETWEEN = {
    "finemoe",
    "finemoe no-semantic",
    "finemoe-plus",
    "moe-infinity",
}  # iterations or requests, which a block takes in order
ALWAYS_AT_ONCE = KNOWING_NOTHING | LEARNING_BETWEEN | {"oracle"}


def heard(policy: Policy, trace: RoutingTrace) -> list[tuple]:
    """What it predicts and reads, in blocks of some rows."""
    blocks = [(block, *demanded_sets(trace, block)) for block in iteration_blocks(trace, 20)]
    assert len(blocks) > 1
    return [ask(policy, *block, hidden_size=64) for block in blocks]


@pytest.mark.parametrize("has_history", [False, True], ids=["online", "offline"])
@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("source", TRACES)
def test_a_block_at_once_is_what_it_is_step_by_step(source, name, has_history):
    trace, history, distance = TRACES[source]
    system, options = SYSTEMS[name]
    setup = replay_setup(trace, history if has_history else None, distance)
    at_once, step_by_step = (make_policy(system, setup, is_replay=True, **options) for _ in range(2))
    step_by_step.predict_block = lambda block: None
    predicted = 0
    for (found, read), (expected, expected_read) in zip(heard(at_once, trace), heard(step_by_step, trace), strict=True):
        for field in ("moments", "layers", "probabilities", "selected"):
            one, other = getattr(found, field), getattr(expected, field)
            np.testing.assert_array_equal(one, other, err_msg=field)
            assert one.dtype == other.dtype
        np.testing.assert_array_equal(read, expected_read)
        predicted += len(found.moments)
    is_predicting = POLICIES[system].needs_context or POLICIES[system].loads_whole_layers
    assert bool(predicted) == is_predicting or not has_history  # learners may know too little yet


@pytest.mark.parametrize("has_history", [False, True], ids=["online", "offline"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_whoever_can_answer_for_a_block_is_asked_at_once(monkeypatch, name, has_history):
    trace, history, distance = TRACES["golden"]
    system, options = SYSTEMS[name]
    policy = make_policy(system, replay_setup(trace, history if has_history else None, distance), is_replay=True, **options)
    monkeypatch.setattr(type(policy), "on_gate", lambda *_: pytest.fail("asked step by step"))
    is_at_once = name in ALWAYS_AT_ONCE or (has_history and name in LEARNING_BEFOREHAND)
    if is_at_once:
        heard(policy, trace)
    else:
        with pytest.raises(pytest.fail.Exception, match="asked step by step"):
            heard(policy, trace)


@pytest.mark.parametrize("name", SYSTEMS)
def test_nobody_changes_what_was_predicted(name):
    """A prediction is held by executors: a policy that went on writing into it would tell them what they did not hear."""
    trace, history, distance = TRACES["batches"]
    system, options = SYSTEMS[name]
    policy = make_policy(system, replay_setup(trace, history, distance), is_replay=True, **options)
    policy.predict_block = lambda block: None
    told = []

    def noting(answering):
        def answer(*arguments):
            predictions = answering(*arguments)
            told.extend((one, one.probabilities.copy(), one.experts.copy()) for one in predictions)
            return predictions

        return answer

    policy.start_iteration, policy.on_gate = noting(policy.start_iteration), noting(policy.on_gate)
    heard(policy, trace)
    assert bool(told) == policy.needs_context
    for one, probabilities, experts in told:
        assert one.probabilities.dtype == np.float32
        assert one.probabilities.shape == (trace.num_experts,)
        assert (np.diff(one.experts) > 0).all()
        np.testing.assert_array_equal(one.probabilities, probabilities)
        np.testing.assert_array_equal(one.experts, experts)


def test_steps_of_ones_own_are_never_left_out():
    """A subclass that changes a step inherits no answer for whole blocks, which would know nothing of it."""

    class Silent(FineMoE):
        def on_gate(self, layer, probs, experts, lookahead=None):
            return []

    trace, history, distance = TRACES["golden"]
    policy = Silent(replay_setup(trace, history, distance))
    assert policy.predict_block is not None
    assert all((found.moments % 2 == 0).all() for found, _ in heard(policy, trace))


class _Mixin:
    def on_gate(self, *_):
        return []


def test_whoever_differs_from_its_base_is_asked_step_by_step():
    """Else a replay would count what the base predicts, and a live run what the class does."""

    class Overriding(FineMoE):
        def wanted(self, layer, probs, scores=None):
            return super().wanted(layer, probs, scores).with_experts(np.empty(0, dtype=np.int64))

    class Mixed(_Mixin, FineMoE):
        pass

    class Named(FineMoE):
        default_eviction = "lru"

    assert Overriding.predict_block is Mixed.predict_block is Policy.predict_block
    assert Named.predict_block is FineMoE.predict_block


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": np.array([0, 4])}, "layers in 0..3"),
        ({"layers": np.array([0])}, "have unequal lengths"),
        ({"moments": np.array([0, 24])}, r"ascending moments in 0\.\.23"),
        ({"moments": np.array([3, 1])}, "ascending moments"),
        ({"probabilities": np.full((2, 5), 0.2, dtype=np.float32)}, "not 6 experts"),
        ({"probabilities": np.full((2, 6), -1, dtype=np.float32)}, "none below 0"),
        ({"probabilities": np.full((2, 6), np.nan, dtype=np.float32)}, "finite"),
    ],
)
def test_impossible_predictions_of_a_block_are_refused(changes, message):
    whole = Predictions(np.array([0, 3]), np.array([0, 3]), np.zeros((2, 6), np.float32), np.zeros((2, 6), np.bool_))
    assert whole.checked(4, 6, 3) is whole
    with pytest.raises(FinemoeError, match=message):
        replace(whole, **changes).checked(4, 6, 3)


def test_who_loads_whole_layers_predicts_none():
    with pytest.raises(FinemoeError, match="Both loads whole layers and therefore predicts none"):
        type("Both", (FineMoE,), {"loads_whole_layers": True})
