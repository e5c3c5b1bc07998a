"""`finemoe.replay`: golden counts, invariants, agreement with the live engine, and with numbers computed elsewhere."""

from functools import cache as memoised

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import finemoe
from finemoe.cache.rules import RULES
from finemoe.errors import FinemoeError
from finemoe.importers.gpt_oss import load_gpt_oss, sample_path
from finemoe.policies import LIVE_POLICIES
from finemoe.traces import RoutingTrace
from tests.runtime.models import build
from tests.runtime.test_lossless import WordTokenizer

SPECULATIVE = {"predictor": "speculative"}
CAUSAL = sorted(set(RULES) - {"belady"})


def small_trace(seed: int = 0, rows: int = 60, layers: int = 3, experts: int = 6, top_k: int = 2) -> RoutingTrace:
    """Routing with habits: every request prefers some experts."""
    rng = np.random.default_rng(seed)
    taste = rng.dirichlet(np.full(experts, 0.5), size=(3, layers))
    picks = [[rng.choice(experts, top_k, replace=False, p=taste[row * 3 // rows, layer] * 0.9 + 0.1 / experts) for layer in
              range(layers)] for row in range(rows)]  # fmt: skip
    probs = rng.dirichlet(np.ones(top_k), size=(rows, layers))
    return RoutingTrace.from_topk(np.array(picks), probs, [0, rows // 3, 2 * rows // 3, rows], experts)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_counts_add_up(rule):
    trace = small_trace()
    report = finemoe.replay(trace, "on-demand", 0.4, eviction=rule, expert_bytes=10)
    assert report.accesses == report.hits + report.misses == 60 * 3 * 2
    assert report.demand_bytes == 10 * report.misses
    assert (report.prefetched_bytes, report.wasted_bytes, report.late) == (0, 0, 0)
    assert sum(report.layer_hits) == report.hits == sum(request.hits for request in report.requests)
    assert sum(request.demand_bytes for request in report.requests) == report.demand_bytes
    assert [request.num_decode_steps for request in report.requests] == [20, 20, 20]


def test_golden_counts_of_every_rule():
    """Literal hits on one small trace at 7 of 18 slots: a changed rule changes one of them."""
    trace = small_trace(seed=5)
    found = {rule: finemoe.replay(trace, "on-demand", 7 / 18, eviction=rule).hits for rule in sorted(RULES)}
    assert found == GOLDEN


GOLDEN = {
    "belady": 252,
    "finemoe": 196,
    "least-stale": 204,
    "least-stale-interval": 169,
    "lfru": 198,
    "lfu": 196,
    "lfu-aged": 192,
    "lru": 187,
    "next-use": 207,
}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.06, 1.0))
def test_belady_is_above_every_causal_rule(seed, share):
    trace = small_trace(seed)
    best = finemoe.replay(trace, "on-demand", share, eviction="belady").hits
    assert all(finemoe.replay(trace, "on-demand", share, eviction=rule).hits <= best for rule in CAUSAL)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_belady_is_optimal_where_brute_force_can_tell(seed):
    """One layer, one expert a token: the fewest misses over every possible choice of victims."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 4, size=(9, 1, 1))
    trace = RoutingTrace.from_topk(ids, np.ones((9, 1, 1)), [0, 9], 4)
    sequence = tuple(ids[:, 0, 0].tolist())

    @memoised
    def fewest(position: int, held: frozenset) -> int:
        if position == len(sequence):
            return 0
        wanted = sequence[position]
        if wanted in held:
            return fewest(position + 1, held)
        options = [held] if len(held) < 2 else [held - {victim} for victim in held]
        return 1 + min(fewest(position + 1, option | {wanted}) for option in options)

    assert finemoe.replay(trace, "on-demand", 0.5, eviction="belady").misses == fewest(0, frozenset())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_lru_has_the_inclusion_property(seed):
    trace = small_trace(seed)
    hits = [finemoe.replay(trace, "on-demand", slots / 18, eviction="lru").hits for slots in range(2, 19)]
    assert hits == sorted(hits)


def test_everything_fits_or_nearly_nothing():
    trace = small_trace()
    everything = finemoe.replay(trace, "on-demand", 1.0)
    distinct = len(np.unique(trace.expert_ids.astype(int) + 6 * np.arange(3)[None, :, None]))
    assert everything.misses == distinct
    one = finemoe.replay(trace, "on-demand", 1 / 18)
    assert one.hits <= 60 * 3  # at most the one expert that is there


SYSTEMS = [*((name, {}) for name in LIVE_POLICIES), ("promoe", SPECULATIVE)]
RECORDING = {"tokenizer": WordTokenizer(), "max_new_tokens": 6, "min_new_tokens": 6}


def assert_live_and_replay_agree(policy: str, share: float, devices: int = 1, **options) -> None:
    """The same routing through the engine (in line, instant link) and the replay: the same hits and misses at every layer."""
    model, prompts = build("qwen2_moe"), ["hello there", "some more words", "x"]
    trace = finemoe.record(model, prompts, lookahead=(1, 3), **RECORDING)
    with finemoe.offload(model, share, policy, devices=devices, asynchronous=False, **options) as engine, torch.no_grad():
        for prompt in prompts:
            inputs = RECORDING["tokenizer"]([prompt], return_tensors="pt", padding=False)
            model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        live = engine.report()
        record_bytes = engine.records.record_bytes
    replayed = finemoe.replay(trace, policy, share, devices=devices, expert_bytes=record_bytes, **options)
    names = ["layer_hits", "layer_misses", "prefetched_bytes", "demand_bytes", "wasted_bytes", "useful_bytes", "eviction"]
    assert {name: getattr(live, name) for name in names} == {name: getattr(replayed, name) for name in names}
    assert [request.hits for request in live.requests] == [request.hits for request in replayed.requests]
    if share < 1:  # with everything resident the engine predicts nothing any more
        assert live.recall_at_k == pytest.approx(replayed.recall_at_k, nan_ok=True)


@pytest.mark.parametrize(("policy", "options"), SYSTEMS, ids=str)
@pytest.mark.parametrize("rule", [None, "lru", "finemoe", "least-stale-interval"])
@pytest.mark.parametrize("with_history", [False, True])
def test_live_and_replay_agree(policy, options, rule, with_history):
    history = finemoe.record(build("qwen2_moe"), ["another one", "words"], **RECORDING) if with_history else None
    assert_live_and_replay_agree(policy, 0.3, eviction=rule, history=history, **options)


@pytest.mark.parametrize(("policy", "options"), SYSTEMS, ids=str)
@pytest.mark.parametrize(("share", "devices"), [(0.1, 1), (1.0, 1), (0.3, 3), (0.1, 3), (1.0, 5)])
def test_they_agree_where_sets_exceed_the_cache_and_on_several_devices(policy, options, share, devices):
    assert_live_and_replay_agree(policy, share, devices, **options)


@pytest.mark.skipif(not sample_path().is_file(), reason="the public gpt-oss-20b trace is not here")
@pytest.mark.parametrize(
    ("share", "lru", "lfu", "belady"), [(0.25, 0.608, 0.486, 0.823), (0.5, 0.906, 0.795, 0.965)], ids=["quarter", "half"]
)
def test_hit_rates_computed_elsewhere_on_gpt_oss(share, lru, lfu, belady):
    """All 369 requests in file order, one cold cache at the start (the cross-check of DESIGN 4)."""
    trace = load_gpt_oss(sample_path())
    found = [finemoe.replay(trace, "on-demand", share, eviction=rule).hit_rate for rule in ("lru", "lfu", "belady")]
    assert found == pytest.approx([lru, lfu, belady], abs=0.005)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "magic"}, "unknown policy 'magic'"),
        ({"eviction": "mru"}, r"unknown eviction rule 'mru'; did you mean 'lru'\? known: belady"),
        ({"expert_memory": 1}, "bytes need expert_bytes; write 1.0 for all experts"),
        ({"expert_memory": 1.5}, r"must be in \(0, 1\]"),
        ({"expert_memory": "6GiB"}, "bytes need expert_bytes"),
        ({"expert_memory": 5, "expert_bytes": 10}, "one expert takes 10"),
        ({"expert_memory": True}, "must be a share"),
        ({"hardware": "7x-rtx3090"}, r"no testbed '7x-rtx3090'; did you mean '6x-rtx3090'\? known: 6x-rtx3090"),
        ({"hardware": "6x-rtx3090"}, "no published configuration of 3 layers x 6 experts / 2"),
        ({"devices": 0}, "devices is 0; in a replay it must be a whole number, at least 1"),
        ({"devices": 2.5}, r"devices is 2\.5"),
        ({"expert_bytes": 0}, "expert_bytes is 0"),
        ({"host_memory": "8GiB"}, "link and host_memory belong to the live engine"),
        ({"prefetch_distance": 1.5}, r"prefetch_distance is 1\.5"),
        ({"prefetch_distance": 9}, "prefetch_distance is 9; it must be in 1..3"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(FinemoeError, match=message):
        finemoe.replay(small_trace(), **options)


def test_the_future_is_for_replay_only():
    with pytest.raises(FinemoeError, match="must know the future"):
        finemoe.offload(build("mixtral"), 0.5, eviction="belady")
