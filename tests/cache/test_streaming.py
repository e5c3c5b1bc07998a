"""Streaming in a cache, against the same rules written as sets."""

import numpy as np
import pytest

from finemoe.cache import kernels, streaming
from finemoe.cache.prefetch_queue import NOTHING, take_most_urgent
from finemoe.cache.rules import rule_named
from finemoe.cache.state import ABSENT, HELD, LAYER, NUM_PENDING, RESIDENT, empty_state

LAYERS, EXPERTS = 5, 6


class Streamed:
    """A cache in a random state, in which a streamed iteration starts."""

    def __init__(self, seed: int, num_slots: int, rule: str = "lru", least_gain: float | None = None) -> None:
        self.random = np.random.default_rng(seed)
        self.rule = rule_named(rule)
        self.weigh, self.visit = self.rule.pointers()
        self.cache = empty_state(LAYERS, EXPERTS, num_slots, self.rule.own(EXPERTS), False, least_gain)
        self.found = np.zeros(EXPERTS, dtype=np.uint8)
        for layer in self.random.permutation(np.repeat(np.arange(LAYERS), 2)):
            self.demand(layer, self.random.choice(EXPERTS, 3, replace=False))
        self.cache.is_local[:] = self.random.random(LAYERS * EXPERTS) < 0.8
        self.start()

    def start(self) -> None:
        kernels.start_iteration(self.cache)
        self.held_before = self.held()
        streaming.start_streaming(self.cache)

    def demand(self, layer: int, experts: np.ndarray) -> bool:
        """Demand and load a set, as far as it fits; returns whether it does."""
        cache, experts = self.cache, np.sort(experts)
        kernels.demand(cache, layer, experts, self.found, self.visit)
        fits = True
        for flat in layer * EXPERTS + experts:
            if cache.presence[flat] == ABSENT:
                slot, _, _ = kernels.admit(cache, flat, False, self.weigh)
                fits = fits and slot >= 0
                if slot >= 0:
                    kernels.complete(cache, flat)
        return fits

    def held(self) -> set[int]:
        return set(self.cache.held[: self.cache.counts[HELD]].tolist())

    def queue(self) -> list[int]:
        return self.cache.pending[: self.cache.counts[NUM_PENDING]].tolist()

    def needed(self) -> set[int]:
        """What may not be evicted: the running set, and what later layers await."""
        return {flat for flat in self.held() if self.cache.running[flat] or self.cache.awaiting[flat]}

    def load_queue(self) -> list[int]:
        """Load everything that is queued, like an idle link; returns it in order."""
        loaded = []
        while (flat := take_most_urgent(self.cache)) != NOTHING:
            needed = self.needed()
            slot, evicted, _ = kernels.admit(self.cache, flat, True, self.weigh)
            assert slot >= 0, "there is room for everything that is queued"
            assert evicted not in needed
            kernels.complete(self.cache, flat)
            loaded.append(flat)
        return loaded


def widest(cache) -> int:
    return int(cache.is_local.reshape(LAYERS, EXPERTS).sum(axis=1).max())


@pytest.mark.parametrize("num_slots", [1, 3, 7, 12, 13, 20, 29, 30])
@pytest.mark.parametrize("seed", range(4))
def test_the_nearest_layers_stay_but_for_a_window(num_slots, seed):
    one = Streamed(seed, num_slots)
    kept = max(0, num_slots - 2 * widest(one.cache))
    assert set(sorted(one.held_before)[:kept]) <= one.needed(), "flat ids ascend with the layers"
    assert len(one.queue()) <= 2 * widest(one.cache)


@pytest.mark.parametrize("rule", ["lru", "lfu", "finemoe"])
@pytest.mark.parametrize("least_gain", [None, 0.25])
@pytest.mark.parametrize("num_slots", [1, 4, 7, 12, 16, 25, 30])
def test_the_queue_holds_the_nearest_absent_experts_as_far_as_there_is_room(rule, num_slots, least_gain):
    """Loading it evicts nothing that this iteration still needs, whatever the rule says of its worth."""
    one = Streamed(num_slots, num_slots, rule, least_gain)
    cache, is_quiet = one.cache, True
    one.load_queue()
    for layer in range(LAYERS):
        fits = one.demand(layer, one.random.choice(EXPERTS, one.random.integers(1, EXPERTS), replace=False))
        before = one.needed()
        streaming.stream_ahead(cache)
        expected, room = [], num_slots - len(before)
        for flat in range((layer + 1) * EXPERTS, LAYERS * EXPERTS):
            if room == 0 or len(expected) == 2 * widest(cache):
                break
            is_absent = cache.presence[flat] == ABSENT
            if is_absent and cache.is_local[flat]:
                expected.append(flat)
            room -= (is_absent and cache.is_local[flat]) or (not is_absent and flat not in before)
        assert one.queue() == expected
        assert fits or not expected
        if one.random.random() < 0.5:
            one.load_queue()
        is_quiet = is_quiet and not expected
    assert cache.counts[LAYER] == LAYERS - 1
    assert not one.queue(), "no layer comes after the last"
    assert is_quiet == (num_slots in (1, 30)), "no room, or nothing absent"
    kernels.start_iteration(cache)
    streaming.stream_ahead(cache)
    assert not one.queue(), "the next iteration is not streamed"


def test_popular_experts_of_a_layer_go_first_and_near_layers_before_far_ones():
    one = Streamed(0, LAYERS * EXPERTS)
    cache = one.cache
    kernels.reset(cache)
    cache.is_local[:] = True
    cache.stats.turns[:] = 9
    cache.stats.frequency[:] = 1 + np.tile(np.array([0, 9, 5, 5, 9, 1]), LAYERS)
    one.start()
    layers = np.array(one.load_queue()) // EXPERTS
    order = [1, 4, 2, 3, 5, 0]
    first = [flat for flat in np.flatnonzero(cache.presence == RESIDENT) if flat < EXPERTS]
    assert first == list(range(EXPERTS)), "the whole first layer"
    assert set(layers.tolist()) == {0, 1}, "a window of two layers"
    kernels.reset(cache)
    one.start()
    loaded = one.load_queue()
    assert [flat for flat in loaded if flat < EXPERTS] == order
    assert [flat - EXPERTS for flat in loaded if flat >= EXPERTS] == order
