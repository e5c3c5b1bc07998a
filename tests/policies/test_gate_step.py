"""A gate answered in compiled code is answered as in Python, bit for bit; what an impossible answer leads to."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import finemoe
from finemoe.compiling import njit
from finemoe.errors import FinemoeError
from finemoe.maps.following import OUT_OF_PLACE, follow_gate
from finemoe.maps.forecast_step import foretell_gate
from finemoe.maps.search import TrajectorySearch, guide
from finemoe.native import function_addresses
from finemoe.policies import make_policy
from finemoe.policies.base import Context, Policy, PolicySetup
from finemoe.policies.finemoe import FineMoE
from finemoe.policies.finemoe_plus import LAYERS_LOADED, FinemoePlus
from finemoe.policies.gate_step import GateStep
from finemoe.runtime.gates import GateOutput
from finemoe.runtime.lookahead import AheadOutput, Choice
from finemoe.runtime.matcher import Matcher
from finemoe.runtime.timeline import Timeline
from finemoe.traces import RoutingTrace
from tests.runtime.models import build, padded_batch
from tests.test_traces import make_trace

SERVED, HISTORY = make_trace(1, (9, 4, 6), layers=4), make_trace(2, (30, 20), layers=4)
J, K, D = SERVED.num_experts, SERVED.top_k, 2


class InPython(FineMoE):
    """Answers as FineMoE does, but is asked."""

    def on_gate(self, layer, probs, experts, lookahead=None):
        return super().on_gate(layer, probs, experts, lookahead)


class PlusInPython(FinemoePlus):
    """Likewise finemoe-plus."""

    def on_gate(self, layer, probs, experts, lookahead=None):
        return super().on_gate(layer, probs, experts, lookahead)


@njit
def sound(table, layer, probs, selected, layers, probabilities, counts, experts):  # pragma: no cover - compiled
    """Predicts nothing of as many layers as there is room for, and says so."""
    probabilities[:] = 0
    counts[:] = 0
    layers[:] = (layer + 1 + np.arange(len(layers))) % table[0]
    return np.int64(len(layers))


@njit
def too_many(table, layer, probs, selected, layers, probabilities, counts, experts):  # pragma: no cover - compiled
    made = sound(table, layer, probs, selected, layers, probabilities, counts, experts)
    counts[made - 1] = experts.shape[1] + 1
    return made


@njit
def fewer_than_none(table, layer, probs, selected, layers, probabilities, counts, experts):  # pragma: no cover - compiled
    made = sound(table, layer, probs, selected, layers, probabilities, counts, experts)
    counts[made - 1] = -1
    return made


@njit
def unknown_expert(table, layer, probs, selected, layers, probabilities, counts, experts):  # pragma: no cover - compiled
    made = sound(table, layer, probs, selected, layers, probabilities, counts, experts)
    counts[made - 1], experts[made - 1, 0] = 1, experts.shape[1]
    return made


@njit
def no_number(table, layer, probs, selected, layers, probabilities, counts, experts):  # pragma: no cover - compiled
    made = sound(table, layer, probs, selected, layers, probabilities, counts, experts)
    probabilities[made - 1] = np.nan
    return made


@njit
def layer_twice(table, layer, probs, selected, layers, probabilities, counts, experts):  # pragma: no cover - compiled
    made = sound(table, layer, probs, selected, layers, probabilities, counts, experts)
    layers[:] = layer
    return made


@njit
def layer_too_far(table, layer, probs, selected, layers, probabilities, counts, experts):  # pragma: no cover - compiled
    made = sound(table, layer, probs, selected, layers, probabilities, counts, experts)
    layers[made - 1] = table[0]
    return made


@njit
def layer_below_0(table, layer, probs, selected, layers, probabilities, counts, experts):  # pragma: no cover - compiled
    made = sound(table, layer, probs, selected, layers, probabilities, counts, experts)
    layers[made - 1] = -1
    return made


@njit
def more_than_room(table, layer, probs, selected, layers, probabilities, counts, experts):  # pragma: no cover - compiled
    return sound(table, layer, probs, selected, layers, probabilities, counts, experts) + 1


@njit
def out_of_place(table, layer, probs, selected, layers, probabilities, counts, experts):  # pragma: no cover - compiled
    return np.int64(OUT_OF_PLACE)


IMPOSSIBLE = [too_many, fewer_than_none, unknown_expert, no_number, layer_too_far, layer_below_0, more_than_room]


class Impossible(FineMoE):
    """Its step is `step`, which makes so many predictions."""

    step, num_targets = sound, 1

    def gate_step(self, num_rows):
        table, single = np.full(1, self.setup.num_layers), np.zeros((1, 1), dtype=np.float32)
        address, _ = function_addresses(type(self).step, table, 1, single, table[None], table, single, table, table[None])
        return GateStep(address, table, self.num_targets, table)


def setup(history: RoutingTrace | None) -> PolicySetup:
    return PolicySetup(4, J, K, SERVED.embedding_table.shape[1], D, store_capacity=12, history=history)


def iterations() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Prefills and decode steps: maps [B, L, J] and embeddings."""
    for begin, end in ((0, 5), (5, 6), (6, 7), (9, 12), (12, 13), (13, 19)):
        rows = slice(begin, end)
        yield SERVED.maps(rows), SERVED.embeddings(rows)


def room(step: GateStep) -> tuple[np.ndarray, ...]:
    """For what a step predicts: layers, probabilities, counts, experts."""
    shape = step.num_targets, J
    numbers = np.full(shape[0], -7, dtype=np.int64)
    return numbers, np.full(shape, np.nan, dtype=np.float32), numbers.copy(), np.full(shape, -7, dtype=np.int64)


@pytest.mark.parametrize("history", [None, HISTORY], ids=["online", "offline"])
@pytest.mark.parametrize("options", [{}, {"similarity_aware": False}], ids=["aware", "unaware"])
def test_a_step_says_what_observing_searching_and_selecting_one_after_the_other_say(history, options):
    policy, answers = make_policy("finemoe", setup(history), **options), 0
    for maps, embeddings in iterations():
        policy.start_iteration(Context(embeddings, is_prefill=None, starts_request=True, num_rows=len(maps)))
        step, search, size = policy.gate_step(len(maps)), TrajectorySearch(policy.store, len(maps)), len(policy.store)
        for layer in range(4):
            gate, target = np.ascontiguousarray(maps[:, layer]), layer + D
            layers, probabilities, counts, experts = room(step)
            found = follow_gate(step.table, layer, gate, np.zeros((len(gate), K), int), layers, probabilities, counts, experts)
            assert found == (size > 0 and target < 4)
            if found:
                search.observe(layer, gate)
                neighbours, scores = search.nearest()
                wanted = policy.wanted(target, guide(policy.store, neighbours, target), None if options else scores)
                assert layers[0] == target
                np.testing.assert_array_equal(wanted.probabilities, probabilities[0])
                np.testing.assert_array_equal(wanted.experts, experts[0, : counts[0]])
                answers += 1
        policy.end_iteration()
        if history is None:
            assert len(policy.store) == min(size + len(maps), 12)
    assert answers >= 8


@pytest.mark.parametrize("history", [None, HISTORY], ids=["online", "offline"])
def test_a_forecaster_s_step_says_what_it_says_when_asked(history):
    stepping, asked = (make_policy("finemoe-plus", setup(history), least_gain=0.15) for _ in range(2))
    wanted = 0
    for number, (first_row, num_rows) in enumerate([(0, 5), (5, 1), (6, 1), (7, 1), (9, 1), (10, 3), (13, 3), (0, 19), (8, 1)]):
        rows = slice(first_row, first_row + num_rows)
        maps, context = SERVED.maps(rows), Context(None, num_rows in (5, 19), number in (0, 5), num_rows)
        for one, other in zip(stepping.start_iteration(context), asked.start_iteration(context), strict=True):
            np.testing.assert_array_equal(one.probabilities, other.probabilities)
        step = stepping.gate_step(num_rows)
        for layer in range(4):
            gate, selected = np.ascontiguousarray(maps[:, layer]), SERVED.expert_ids[rows, layer].astype(np.int64)
            if number in (3, 6) and layer in (0, 2):
                gate, selected = np.full_like(gate, 1 / J), selected[:, :0].copy()  # it stood idle
            elif number == 2:
                selected[0, 0] = J + 1  # a token may skip it
            layers, probabilities, counts, experts = room(step)
            made = foretell_gate(step.table, layer, gate, selected, layers, probabilities, counts, experts)
            answer = asked.on_gate(layer, gate, selected)
            assert [one.layer for one in answer] == layers[:made].tolist()
            for place, one in enumerate(answer):
                np.testing.assert_array_equal(one.probabilities, probabilities[place])
                assert one.experts.tolist() == experts[place, : counts[place]].tolist()
                wanted += len(one.experts)
    assert wanted > 0
    for name, array in stepping.forecaster.state().items():
        np.testing.assert_array_equal(array, asked.forecaster.state()[name])


def test_a_forecaster_s_step_asks_for_near_layers_of_this_iteration():
    num_layers = LAYERS_LOADED + 3
    policy = make_policy("finemoe-plus", PolicySetup(num_layers, J, K), least_gain=0)
    policy.start_iteration(Context(None, is_prefill=False, starts_request=True))
    step, gate = policy.gate_step(1), np.full((1, J), 1 / J, dtype=np.float32)
    for layer in range(num_layers):
        layers, probabilities, counts, experts = room(step)
        assert foretell_gate(step.table, layer, gate, np.zeros((1, 1), int), layers, probabilities, counts, experts) == len(
            layers
        )
        for distance, target, count in zip(policy.forecaster.distances, layers, counts, strict=True):
            assert target == (layer + distance) % num_layers
            assert count == (J if layer + distance < num_layers and distance <= LAYERS_LOADED else 0)


@pytest.mark.parametrize("least", [0.3, np.float64(0.3), np.float32(0.3), 1])
def test_what_is_just_worth_it_is_the_same_in_either_way(least):
    """NumPy compares single precision with a number of Python's in single precision, and with one of its own in double."""
    policy = make_policy("finemoe-plus", PolicySetup(1, 2, 1, prefetch_distance=1), least_gain=least)
    compared = policy.gate_step(1).owner.least[0]
    for probability in np.array([0.3, np.nextafter(np.float32(0.3), np.float32(0)), 1.0], dtype=np.float32):
        assert (np.float64(probability) >= compared) == (np.full(1, probability) >= least)[0]


def test_a_gate_out_of_place_is_no_gate_of_a_forecaster_s():
    policy, gate, selected = (
        make_policy("finemoe-plus", setup(None)),
        np.full((2, J), 1 / J, dtype=np.float32),
        np.zeros((2, K), int),
    )
    step = policy.gate_step(2)
    for layer, probs, experts in ((0, gate, selected), (1, gate, selected), (0, gate[:1], selected[:1]), (0, gate, selected[:1])):
        found = foretell_gate(step.table, layer, probs, experts, *room(step))
        assert found == OUT_OF_PLACE
        with pytest.raises(FinemoeError, match=f"the gate of layer {layer}"):
            policy.on_gate(layer, probs, experts)
        policy.start_iteration(Context(None, is_prefill=True, starts_request=False, num_rows=2))


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "gpt_oss"])
@pytest.mark.parametrize(("name", "asked"), [("finemoe", InPython), ("finemoe-plus", PlusInPython)])
def test_an_engine_that_asks_in_python_does_the_same(family, name, asked):
    def run(policy: str, num_devices: int) -> tuple:
        model = build(family)
        with torch.no_grad(), finemoe.offload(model, 1.0, policy, asynchronous=False, devices=["cpu"] * num_devices) as engine:
            with engine.probe.accounting():
                tokens = model.generate(**padded_batch(), max_new_tokens=8, min_new_tokens=8, do_sample=False)
            report, expected = engine.report(), engine.memories.memories[0].expected.copy()
        return tokens.tolist(), (report.accesses, report.misses, report.recall_at_k), expected.tolist()

    stepping = run(name, 1)
    assert run(f"{__name__}:{asked.__name__}", 1) == stepping
    assert run(name, 2) == stepping  # over several devices it is asked, too
    assert stepping[1][2] > 0


@pytest.mark.parametrize("share", [0.3, 0.6])
@pytest.mark.parametrize(("name", "asked"), [("finemoe", InPython), ("finemoe-plus", PlusInPython)])
def test_an_engine_that_asks_in_python_loads_and_evicts_the_same(share, name, asked):
    def counts(policy: str) -> tuple:
        model = build("qwen2_moe")
        with torch.no_grad(), finemoe.offload(model, share, policy, asynchronous=False) as engine:
            model.generate(**padded_batch(), max_new_tokens=12, min_new_tokens=12, do_sample=False)
            report = engine.report()
        return report.layer_hits, report.layer_misses, report.prefetched_bytes, report.wasted_bytes, report.recall_at_k

    assert counts(f"{__name__}:{asked.__name__}") == counts(name)


def test_whoever_answers_in_its_own_way_is_asked():
    assert InPython.gate_step is PlusInPython.gate_step is Policy.gate_step
    assert make_policy("on-demand", setup(None)).gate_step(1) is None


@pytest.mark.parametrize(("step", "num_targets"), [*((step, num) for step in IMPOSSIBLE for num in (1, 2)), (layer_twice, 2)])
def test_an_impossible_answer_is_refused(step, num_targets, monkeypatch):
    monkeypatch.setattr(Impossible, "step", step)
    monkeypatch.setattr(Impossible, "num_targets", num_targets)
    model = build("mixtral")
    refused = pytest.raises(FinemoeError, match="compiled step made an impossible prediction after the gate of layer 0")
    engine = finemoe.offload(model, 0.5, f"{__name__}:Impossible", asynchronous=False, prefetch_distance=1)
    with torch.no_grad(), engine, refused:
        model(**padded_batch())


@pytest.mark.parametrize("num_targets", [0, 1, 2])
def test_what_is_possible_is_posted(num_targets, monkeypatch):
    monkeypatch.setattr(Impossible, "num_targets", num_targets)
    engine = finemoe.offload(model := build("mixtral"), 0.5, f"{__name__}:Impossible", asynchronous=False)
    with torch.no_grad(), engine:
        model(**padded_batch())
        assert engine.report().accesses > 0


def test_a_gate_that_the_step_takes_for_another_iteration_s_is_named(monkeypatch):
    monkeypatch.setattr(Impossible, "step", out_of_place)
    engine = finemoe.offload(model := build("mixtral"), 0.5, f"{__name__}:Impossible", asynchronous=False)
    with torch.no_grad(), engine, pytest.raises(FinemoeError, match="does not accept the gate of layer 0 as one of this"):
        model(**padded_batch())


def test_who_looks_ahead_is_asked_and_told_of_the_rows_that_count():
    """A step would be told nothing of it. A layer may see the rows that count alone: then they are all of its rows."""
    told: list[tuple[int, ...]] = []

    class LooksAhead(FineMoE):
        lookahead = (1,)

        def on_gate(self, layer, probs, experts, lookahead=None):
            told.append((len(probs), *lookahead.shape))
            return []

        gate_step = FineMoE.gate_step

    policy = LooksAhead(PolicySetup(2, J, K, prefetch_distance=1))
    matcher = Matcher(policy, lambda *_: None, Timeline(), asynchronous=False, speak=lambda *_: pytest.fail("not asked"))
    rows = np.array([1, 3])
    matcher.publish_start(1, torch.zeros(4, 5), is_prefill=True, starts_request=True, rows=rows)
    for num_rows in (4, 2):
        scores, selected = torch.randn(num_rows, J), torch.zeros(num_rows, K, dtype=torch.int64)
        gate = GateOutput(len(told), J, J, scores, selected.numpy(), torch.ones(num_rows, K))
        ahead = AheadOutput([Choice(scores, selected, J)], [1], J, J)
        matcher.publish_gate(1, gate, rows, ahead)
    assert told == [(2, 1, 2, J)] * 2


def test_a_gate_out_of_order_is_named():
    policy = make_policy("finemoe", setup(HISTORY))
    gate = np.full((2, J), 1 / J, dtype=np.float32)
    with pytest.raises(FinemoeError, match="the gate of layer 1 came after 0 others"):
        policy.on_gate(1, gate, np.zeros((2, K), dtype=np.int64))
    policy.on_gate(0, gate, np.zeros((2, K), dtype=np.int64))
    with pytest.raises(FinemoeError, match="each of"):
        policy.on_gate(1, gate[:1], np.zeros((1, K), dtype=np.int64))
