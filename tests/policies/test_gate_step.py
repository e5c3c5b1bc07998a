"""A gate answered in compiled code is answered as in Python, bit for bit; what an impossible answer leads to."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import finemoe
from finemoe.compiling import njit
from finemoe.errors import FinemoeError
from finemoe.maps.following import NOTHING, OUT_OF_PLACE, follow_gate
from finemoe.maps.search import TrajectorySearch, guide
from finemoe.native import function_addresses
from finemoe.policies import make_policy
from finemoe.policies.base import Context, Policy, PolicySetup
from finemoe.policies.finemoe import FineMoE
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


@njit
def too_many(table, layer, probs, probabilities, experts):  # pragma: no cover - compiled
    probabilities[:] = 0
    return np.int64(len(experts) + 1)


@njit
def unknown_expert(table, layer, probs, probabilities, experts):  # pragma: no cover - compiled
    probabilities[:] = 0
    experts[0] = len(experts)
    return np.int64(1)


@njit
def no_number(table, layer, probs, probabilities, experts):  # pragma: no cover - compiled
    probabilities[:] = np.nan
    return np.int64(0)


@njit
def sound(table, layer, probs, probabilities, experts):  # pragma: no cover - compiled
    probabilities[:] = 0
    return np.int64(0)


@njit
def out_of_place(table, layer, probs, probabilities, experts):  # pragma: no cover - compiled
    return np.int64(OUT_OF_PLACE)


class Impossible(FineMoE):
    """Its step is `step`, which predicts the layer `ahead`."""

    step, ahead = sound, 1

    def gate_step(self, num_rows):
        table, single = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.float32)
        address, _ = function_addresses(type(self).step, table, 1, single[None], single, table)
        return GateStep(address, table, self.ahead, table)


def setup(history: RoutingTrace | None) -> PolicySetup:
    return PolicySetup(4, J, K, SERVED.embedding_table.shape[1], D, store_capacity=12, history=history)


def iterations() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Prefills and decode steps: maps [B, L, J] and embeddings."""
    for begin, end in ((0, 5), (5, 6), (6, 7), (9, 12), (12, 13), (13, 19)):
        rows = slice(begin, end)
        yield SERVED.maps(rows), SERVED.embeddings(rows)


@pytest.mark.parametrize("history", [None, HISTORY], ids=["online", "offline"])
@pytest.mark.parametrize("options", [{}, {"similarity_aware": False}], ids=["aware", "unaware"])
def test_a_step_says_what_observing_searching_and_selecting_one_after_the_other_say(history, options):
    policy, answers = make_policy("finemoe", setup(history), **options), 0
    for maps, embeddings in iterations():
        policy.start_iteration(Context(embeddings, is_prefill=None, starts_request=True, num_rows=len(maps)))
        step, search, size = policy.gate_step(len(maps)), TrajectorySearch(policy.store, len(maps)), len(policy.store)
        for layer in range(4):
            gate, target = np.ascontiguousarray(maps[:, layer]), layer + D
            probabilities, experts = np.full(J, np.nan, dtype=np.float32), np.full(J, -7, dtype=np.int64)
            found = follow_gate(step.table, layer, gate, probabilities, experts)
            assert (found != NOTHING) == (size > 0 and target < 4)
            if found != NOTHING:
                search.observe(layer, gate)
                neighbours, scores = search.nearest()
                wanted = policy.wanted(target, guide(policy.store, neighbours, target), None if options else scores)
                np.testing.assert_array_equal(wanted.probabilities, probabilities)
                np.testing.assert_array_equal(wanted.experts, experts[:found])
                answers += 1
        policy.end_iteration()
        if history is None:
            assert len(policy.store) == min(size + len(maps), 12)
    assert answers >= 8


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_an_engine_that_asks_in_python_does_the_same(family):
    def run(policy: str, num_devices: int) -> tuple:
        model = build(family)
        with torch.no_grad(), finemoe.offload(model, 1.0, policy, asynchronous=False, devices=["cpu"] * num_devices) as engine:
            with engine.probe.accounting():
                tokens = model.generate(**padded_batch(), max_new_tokens=8, min_new_tokens=8, do_sample=False)
            report, expected = engine.report(), engine.memories.memories[0].expected.copy()
        return tokens.tolist(), (report.accesses, report.misses, report.recall_at_k), expected.tolist()

    stepping = run("finemoe", 1)
    assert run(f"{__name__}:InPython", 1) == stepping
    assert run("finemoe", 2) == stepping  # over several devices it is asked, too
    assert stepping[1][2] > 0


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_an_engine_that_asks_in_python_loads_and_evicts_the_same(share):
    def counts(policy: str) -> tuple:
        model = build("qwen2_moe")
        with torch.no_grad(), finemoe.offload(model, share, policy, asynchronous=False) as engine:
            model.generate(**padded_batch(), max_new_tokens=12, min_new_tokens=12, do_sample=False)
            report = engine.report()
        return report.layer_hits, report.layer_misses, report.prefetched_bytes, report.wasted_bytes, report.recall_at_k

    assert counts(f"{__name__}:InPython") == counts("finemoe")


def test_whoever_answers_in_its_own_way_is_asked():
    assert InPython.gate_step is Policy.gate_step
    assert make_policy("on-demand", setup(None)).gate_step(1) is None


@pytest.mark.parametrize(("step", "ahead"), [(too_many, 1), (unknown_expert, 1), (no_number, 1), (sound, 9), (sound, -1)])
def test_an_impossible_answer_is_refused(step, ahead, monkeypatch):
    monkeypatch.setattr(Impossible, "step", step)
    monkeypatch.setattr(Impossible, "ahead", ahead)
    model = build("mixtral")
    refused = pytest.raises(FinemoeError, match="compiled step predicted something impossible when layer 0 had spoken")
    engine = finemoe.offload(model, 0.5, f"{__name__}:Impossible", asynchronous=False, prefetch_distance=1)
    with torch.no_grad(), engine, refused:
        model(**padded_batch())


def test_a_gate_that_the_step_takes_for_another_iteration_s_is_named(monkeypatch):
    monkeypatch.setattr(Impossible, "step", out_of_place)
    engine = finemoe.offload(model := build("mixtral"), 0.5, f"{__name__}:Impossible", asynchronous=False)
    with torch.no_grad(), engine, pytest.raises(FinemoeError, match="takes the gate of layer 0 for none of this iteration's"):
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
    with pytest.raises(FinemoeError, match="the gate of layer 1 spoke after 0 others"):
        policy.on_gate(1, gate, np.zeros((2, K), dtype=np.int64))
    policy.on_gate(0, gate, np.zeros((2, K), dtype=np.int64))
    with pytest.raises(FinemoeError, match="each of"):
        policy.on_gate(1, gate[:1], np.zeros((1, K), dtype=np.int64))
