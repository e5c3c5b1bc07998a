"""The compiled cache against its readable twin: replays on random routing, predictions and prefetches, and the live cache
operation by operation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finemoe.cache.rules import RULES, rule_named
from finemoe.simulation.future import FutureUses
from finemoe.simulation.instant import InstantDevice
from finemoe.simulation.kernel_inputs import Events
from tests.cache import readable
from tests.cache.live_cache import LiveCache
from tests.cache.readable.expert_cache import ABSENT, LOADING, RESIDENT, ExpertCache

LAYERS, EXPERTS = 3, 6


def random_events(seed: int, num_iterations: int) -> Events:
    """Demands of 1 to 5 experts, a prediction before or after some events, prefetches of up to three experts."""
    rng = np.random.default_rng(seed)
    num_events = num_iterations * LAYERS
    sets = [np.sort(rng.permutation(EXPERTS)[: rng.integers(1, 6)]) for _ in range(num_events)]
    begins = np.cumsum([0, *map(len, sets)])
    demanded = np.concatenate(sets)
    moments = np.sort(rng.integers(0, 2 * num_events, size=num_events))
    prefetches = [rng.permutation(LAYERS * EXPERTS)[: rng.integers(0, 4)] for _ in range(2 * num_events)]
    layers = np.tile(np.arange(LAYERS), num_iterations)
    return Events(
        layers=layers,
        is_start=layers == 0,
        begins=begins,
        demanded=demanded,
        next_use=FutureUses(LAYERS, EXPERTS).before(begins, demanded, 0),
        update_begins=np.searchsorted(moments, np.arange(2 * num_events + 1)),
        update_layers=rng.integers(0, LAYERS, size=num_events),
        update_rows=np.arange(num_events),
        rows=rng.dirichlet(np.ones(EXPERTS), size=num_events).astype(np.float32),
        prefetch_begins=np.cumsum([0, *map(len, prefetches)]),
        prefetches=np.concatenate(prefetches),
    )


class Plain:
    """The same events over the readable cache, in as few words as possible."""

    def __init__(self, rule: str, num_slots: int, least_gain: float | None = None) -> None:
        self.rule = readable.RULES[rule](LAYERS, EXPERTS)
        self.cache = ExpertCache(self.rule, num_slots, ahead=0, least_gain=least_gain)
        self.demand_loads = self.prefetch_loads = self.wasted = 0

    def run(self, events: Events) -> list[int]:
        hits = []
        for event, layer in enumerate(events.layers.tolist()):
            if events.is_start[event]:
                self.cache.start_iteration()
                self.moment(events, 2 * event)
            span = slice(events.begins[event], events.begins[event + 1])
            experts = events.demanded[span]
            access = self.cache.demand(layer, experts)
            hits.append(len(access.hits))
            if hasattr(self.rule, "next_use"):
                self.rule.next_use[layer, experts] = events.next_use[span]
            self.admit_all(layer, experts)
            self.moment(events, 2 * event + 1)
        return hits

    def moment(self, events: Events, when: int) -> None:
        for update in range(events.update_begins[when], events.update_begins[when + 1]):
            self.cache.hear(events.update_layers[update], events.rows[events.update_rows[update]])
        for flat in events.prefetches[events.prefetch_begins[when] : events.prefetch_begins[when + 1]].tolist():
            self.cache.post(flat // EXPERTS, np.array([flat % EXPERTS]))
        for target, expert in iter(self.cache.take_most_urgent, None):
            self.prefetch_loads += self.load(target, expert, True)

    def admit_all(self, layer: int, experts: np.ndarray) -> None:
        waiting = [expert for expert in experts.tolist() if self.cache.state[layer, expert] == ABSENT]
        while waiting and self.load(layer, waiting[0], False):
            waiting.pop(0)
            self.demand_loads += 1
        for position, expert in enumerate(experts.tolist()):
            if self.cache.state[layer, expert] != ABSENT:
                continue
            self.cache.release(layer, experts[:position])
            if not self.load(layer, expert, False):
                ahead = [e for e in experts[position + 1 :] if self.cache.state[layer, e] == RESIDENT]
                self.cache.release(layer, np.array(ahead[-1:]))
                assert self.load(layer, expert, False)
            self.cache.need(layer, expert)
            self.demand_loads += 1

    def load(self, layer: int, expert: int, prefetched: bool) -> bool:
        admission = self.cache.admit(layer, expert, prefetched)
        if admission is None:
            return False
        self.wasted += admission.wasted
        self.cache.complete(layer, expert)
        return True


def test_every_rule_has_a_readable_twin():
    assert set(RULES) == set(readable.RULES)


@pytest.mark.parametrize("rule", sorted(readable.RULES))
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_slots=st.integers(1, LAYERS * EXPERTS),
    least_gain=st.sampled_from([None, 0.0, 0.0625, 0.25]),
)
def test_a_replay_agrees_with_the_readable_cache(rule, seed, num_slots, least_gain):
    events = random_events(seed, num_iterations=12)
    compiled = InstantDevice(rule_named(rule, is_replay=True), LAYERS, EXPERTS, num_slots, least_gain)
    plain = Plain(rule, num_slots, least_gain)
    outcome = compiled.run(events)
    assert outcome[:, 0].tolist() == plain.run(events)
    assert outcome[:, 1:].sum(axis=0).tolist() == [plain.demand_loads, plain.prefetch_loads, plain.wasted]
    loads = plain.demand_loads + plain.prefetch_loads
    assert plain.cache.num_held == min(loads, plain.cache.num_held) <= num_slots
    assert compiled.num_unused == plain.cache.num_unused.sum()
    assert compiled.num_useful + compiled.num_unused + plain.wasted == plain.prefetch_loads


class Both:
    """The live cache and its twin, to which the same happens; after every operation they are compared."""

    def __init__(self, rule: str, num_slots: int, rng: np.random.Generator) -> None:
        self.live = LiveCache(rule_named(rule, is_replay=True), LAYERS, EXPERTS, num_slots)
        self.twin = ExpertCache(readable.RULES[rule](LAYERS, EXPERTS), num_slots)
        self.rng = rng

    def step(self) -> None:
        operations = (
            self.start,
            self.demand,
            self.admit,
            self.admit,
            self.complete,
            self.release,
            self.hear,
            self.post,
            self.take,
        )
        self.rng.choice(operations)() if self.rng.random() < 0.98 else self.same("reset")
        assert_alike(self.live, self.twin)

    def same(self, name: str, *arguments):
        found, expected = (getattr(cache, name)(*arguments) for cache in (self.live, self.twin))
        assert repr(found) == repr(expected), (name, arguments)
        return expected

    def key_in(self, state: int) -> tuple[int, int] | None:
        keys = np.argwhere(self.twin.state == state).tolist()
        return tuple(keys[self.rng.integers(len(keys))]) if keys else None

    def some(self) -> np.ndarray:
        return np.sort(self.rng.permutation(EXPERTS)[: self.rng.integers(0, EXPERTS)])

    def start(self) -> None:
        self.same("start_iteration")

    def demand(self) -> None:
        self.same("demand", int(self.rng.integers(LAYERS)), self.some())

    def admit(self) -> None:
        if key := self.key_in(ABSENT):
            self.same("admit", *key, bool(self.rng.integers(2)))

    def complete(self) -> None:
        if key := self.key_in(LOADING):
            self.same("complete", *key)

    def release(self) -> None:
        if self.live.layer >= 0:
            self.same("release", self.live.layer, self.some())

    def hear(self) -> None:
        self.same("hear", int(self.rng.integers(LAYERS)), self.rng.dirichlet(np.ones(EXPERTS)).astype(np.float32))

    def post(self) -> None:
        self.same("post", int(self.rng.integers(LAYERS)), self.rng.permutation(EXPERTS)[: self.rng.integers(0, 4)])

    def take(self) -> None:
        if (key := self.same("take_most_urgent")) and self.rng.random() < 0.5:
            self.same("admit", *key, True)


def assert_alike(live: LiveCache, twin: ExpertCache) -> None:
    for name in ("state", "slot_of", "num_unused"):
        np.testing.assert_array_equal(getattr(live, name), getattr(twin, name))
    np.testing.assert_array_equal(live.running, twin._running)
    np.testing.assert_array_equal(live.expected, twin.rule.expected)
    for name in ("num_held", "num_resident", "num_admitted", "num_evicted"):
        assert getattr(live, name) == getattr(twin, name), name
    assert live.can_evict == (len(twin.evictable()) > 0)


@pytest.mark.parametrize("rule", sorted(readable.RULES))
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), num_slots=st.integers(1, LAYERS * EXPERTS))
def test_the_live_cache_agrees_operation_by_operation(rule, seed, num_slots):
    both = Both(rule, num_slots, np.random.default_rng(seed))
    for _ in range(120):
        both.step()


@pytest.mark.parametrize("rule", sorted(readable.RULES))
def test_blocks_go_on_where_the_last_one_ended(rule):
    events = random_events(3, num_iterations=20)
    whole = InstantDevice(rule_named(rule, is_replay=True), LAYERS, EXPERTS, 7).run(events)
    parts, cache, half = [], InstantDevice(rule_named(rule, is_replay=True), LAYERS, EXPERTS, 7), 10 * LAYERS
    for begin, end in ((0, half), (half, 2 * half)):
        first = events.begins[begin]
        parts.append(
            cache.run(
                Events(
                    layers=events.layers[begin:end],
                    is_start=events.is_start[begin:end],
                    begins=events.begins[begin : end + 1] - first,
                    demanded=events.demanded[first : events.begins[end]],
                    next_use=events.next_use[first : events.begins[end]],
                    update_begins=events.update_begins[2 * begin : 2 * end + 1],
                    update_layers=events.update_layers,
                    update_rows=events.update_rows,
                    rows=events.rows,
                    prefetch_begins=events.prefetch_begins[2 * begin : 2 * end + 1],
                    prefetches=events.prefetches,
                )
            )
        )
    assert np.array_equal(np.concatenate(parts), whole)
