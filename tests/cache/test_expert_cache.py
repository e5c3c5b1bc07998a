"""The cache against a naive twin, and its invariants under random access."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finemoe.cache.rules import rule_named
from finemoe.cache.state import ABSENT, RESIDENT
from finemoe.errors import FinemoeError
from tests.cache.live_cache import LiveCache

LAYERS, EXPERTS = 3, 5
events = st.lists(
    st.tuples(st.integers(0, LAYERS - 1), st.sets(st.integers(0, EXPERTS - 1), min_size=1, max_size=3)), max_size=60
)


def make_cache(rule: str, slots: int, expected: np.ndarray | None = None) -> LiveCache:
    cache = LiveCache(rule_named(rule), LAYERS, EXPERTS, slots)
    for layer, probabilities in enumerate([] if expected is None else expected):
        cache.hear(layer, probabilities)
    return cache


def serve(cache: LiveCache, layer: int, experts: set[int]):
    """One event as an executor runs it when the set fits: access, then admit and load what is missing."""
    access = cache.demand(layer, np.array(sorted(experts)))
    for expert in access.misses.tolist():
        assert cache.admit(layer, expert, prefetched=False) is not None
        cache.complete(layer, expert)
    return access


class NaiveCache:
    """Lists and sorting only: (last visit, count) per expert, victims by LRU or LFU with the same tie rules."""

    def __init__(self, rule: str, slots: int, probability: np.ndarray) -> None:
        self.rule, self.slots, self.probability = rule, slots, probability
        self.resident: list[tuple[int, int]] = []
        self.count = {(layer, e): 1 for layer in range(LAYERS) for e in range(EXPERTS)}
        self.last = dict.fromkeys(self.count, 0)
        self.time = 0

    def serve(self, layer: int, experts: set[int]) -> tuple[int, int]:
        demanded = sorted((layer, e) for e in experts)
        self.time += 1
        for key in demanded:
            self.count[key] += 1
            self.last[key] = self.time
        hits = sum(key in self.resident for key in demanded)
        for key in demanded:
            if key in self.resident:
                continue
            if len(self.resident) == self.slots:
                movable = [k for k in self.resident if k not in demanded]
                self.resident.remove(min(movable, key=lambda k: self.worth(k, layer)))
            self.resident.append(key)
        return hits, len(demanded) - hits

    def worth(self, key: tuple[int, int], layer: int):
        turn = (key[0] - layer - 1) % LAYERS
        worth = {
            "lru": self.last[key],
            "lfu": self.count[key],
            "finemoe": float(self.probability[key]) * self.count[key],
        }[self.rule]
        return worth, self.count[key], -turn, key


@settings(deadline=None)
@given(events, st.integers(3, 9), st.sampled_from(["lru", "lfu", "finemoe"]), st.integers(0, 99))
def test_hits_and_contents_follow_a_naive_twin(trace, slots, rule, seed):
    probability = np.random.default_rng(seed).dirichlet(np.ones(EXPERTS), size=LAYERS).astype(np.float32)
    cache, twin = make_cache(rule, slots, probability), NaiveCache(rule, slots, probability)
    for layer, experts in trace:
        access = serve(cache, layer, experts)
        assert (len(access.hits), len(access.misses)) == twin.serve(layer, experts)
        held = {tuple(key) for key in np.argwhere(cache.state == RESIDENT).tolist()}
        assert held == set(twin.resident)


@settings(deadline=None)
@given(events, st.integers(3, 9), st.sampled_from(["lru", "lfu", "finemoe"]), st.randoms(use_true_random=False))
def test_capacity_and_protection_hold_under_prefetching(trace, slots, rule, random):
    cache = make_cache(rule, slots)
    for layer, experts in trace:
        serve(cache, layer, experts)
        running = set(experts)
        for _ in range(random.randrange(4)):
            target = (random.randrange(LAYERS), random.randrange(EXPERTS))
            if cache.state[target] == ABSENT and cache.admit(*target, prefetched=True):
                cache.complete(*target)
        assert cache.num_held == np.count_nonzero(cache.state) <= slots
        used = cache.slot_of[cache.state != ABSENT]
        assert len(set(used.tolist())) == len(used)
        assert (used >= 0).all()
        assert (used < slots).all()
        assert all(cache.state[layer, e] == RESIDENT for e in running), "an expert of the running layer was evicted"


def test_access_is_event_atomic():
    cache = make_cache("lru", 3)
    serve(cache, 0, {0, 1})
    cache.admit(0, 2, prefetched=True)
    access = cache.demand(0, np.array([1, 2, 3]))
    assert (access.hits.tolist(), access.late.tolist(), access.misses.tolist()) == ([1], [2], [3])


def test_awaited_prefetches_stay_while_anything_else_may_go():
    cache = make_cache("lfu", 3)
    for _ in range(4):
        serve(cache, 1, {3})  # much more frequent than the prefetched expert
    cache.start_iteration()
    serve(cache, 0, {0})
    cache.admit(2, 4, prefetched=True)
    cache.complete(2, 4)
    assert cache.admit(2, 1, prefetched=True).evicted == EXPERTS + 3


def test_awaited_prefetch_is_the_victim_when_nothing_else_is_left():
    cache = make_cache("lru", 2)
    cache.start_iteration()
    serve(cache, 0, {0})
    cache.admit(2, 4, prefetched=True)
    cache.complete(2, 4)
    cache.demand(1, np.array([1]))
    assert cache.admit(1, 1, prefetched=False).evicted == 0  # expert 0 of layer 0 has run
    cache.complete(1, 1)
    cache.demand(1, np.array([1, 2]))
    admission = cache.admit(1, 2, prefetched=False)
    assert admission.evicted == 2 * EXPERTS + 4
    assert admission.wasted


def test_loads_in_flight_are_no_victims():
    cache = make_cache("lfu", 1)
    cache.admit(0, 0, prefetched=True)
    assert cache.admit(1, 1, prefetched=True) is None
    cache.complete(0, 0)
    assert cache.admit(1, 1, prefetched=True).evicted == 0


def test_a_demanded_prefetch_is_not_wasted():
    cache = make_cache("lru", 1)
    cache.admit(0, 0, prefetched=True)
    cache.complete(0, 0)
    cache.demand(0, np.array([0]))
    cache.demand(1, np.array([1]))
    assert not cache.admit(1, 1, prefetched=False).wasted


def test_ties_fall_to_the_layer_whose_turn_is_farthest():
    cache = make_cache("lfu", 2)
    for layer in (0, 2):
        cache.admit(layer, 0, prefetched=True)
        cache.complete(layer, 0)
    cache.start_iteration()
    cache.demand(1, np.array([3]))
    assert cache.admit(1, 3, prefetched=False).evicted == 0  # layer 2 comes next, layer 0 a whole iteration later


def test_no_slot_is_refused():
    with pytest.raises(FinemoeError, match="less than one expert"):
        make_cache("lru", 0)


def test_unknown_rule_lists_the_known_ones():
    with pytest.raises(FinemoeError, match=r"unknown eviction rule 'mru'; did you mean 'lru'\? known: belady, finemoe, least"):
        make_cache("mru", 1)
