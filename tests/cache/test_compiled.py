"""The compiled cache against ExpertCache and its rules, event by event, on random routing, predictions and prefetches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finemoe.cache.compiled import RULE_CODES, CompiledCache, Events
from finemoe.cache.eviction import RULES, make_rule
from finemoe.cache.expert_cache import ABSENT, RESIDENT, ExpertCache
from finemoe.simulation.future import FutureUses

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
    """The same events over ExpertCache, in as few words as possible."""

    def __init__(self, rule: str, num_slots: int) -> None:
        self.rule = make_rule(rule, LAYERS, EXPERTS, is_replay=True)
        self.cache = ExpertCache(self.rule, num_slots)
        self.demand_loads = self.prefetch_loads = self.wasted = 0

    def run(self, events: Events) -> list[int]:
        hits = []
        for event, layer in enumerate(events.layers.tolist()):
            if events.is_start[event]:
                self.cache.start_iteration()
                self.moment(events, 2 * event, -1)
            span = slice(events.begins[event], events.begins[event + 1])
            experts = events.demanded[span]
            access = self.cache.demand(layer, experts)
            hits.append(len(access.hits))
            if hasattr(self.rule, "next_use"):
                self.rule.next_use[layer, experts] = events.next_use[span]
            self.admit_all(layer, experts)
            self.moment(events, 2 * event + 1, layer)
        return hits

    def moment(self, events: Events, when: int, layer: int) -> None:
        for update in range(events.update_begins[when], events.update_begins[when + 1]):
            self.rule.expected[events.update_layers[update]] = events.rows[events.update_rows[update]]
        wanted = events.prefetches[events.prefetch_begins[when] : events.prefetch_begins[when + 1]]
        is_absent = self.cache.state.reshape(-1)[wanted] == ABSENT
        for flat in wanted[~is_absent].tolist():
            if flat // EXPERTS > layer:
                self.cache.expect(*divmod(flat, EXPERTS))
        for flat in wanted[is_absent].tolist():
            target, expert = divmod(flat, EXPERTS)
            if target >= layer and self.cache.state[target, expert] == ABSENT and self.load(target, expert, True):
                self.prefetch_loads += 1

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
            self.demand_loads += 1

    def load(self, layer: int, expert: int, prefetched: bool) -> bool:
        admission = self.cache.admit(layer, expert, prefetched)
        if admission is None:
            return False
        self.wasted += admission.wasted
        self.cache.complete(layer, expert)
        return True


def test_every_rule_is_compiled():
    assert set(RULE_CODES) == set(RULES)


@pytest.mark.parametrize("rule", sorted(RULE_CODES))
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), num_slots=st.integers(1, LAYERS * EXPERTS))
def test_agrees_with_the_readable_cache(rule, seed, num_slots):
    events = random_events(seed, num_iterations=12)
    compiled, plain = CompiledCache(rule, LAYERS, EXPERTS, num_slots), Plain(rule, num_slots)
    outcome = compiled.run(events)
    assert outcome[:, 0].tolist() == plain.run(events)
    assert outcome[:, 1:].sum(axis=0).tolist() == [plain.demand_loads, plain.prefetch_loads, plain.wasted]
    loads = plain.demand_loads + plain.prefetch_loads
    assert plain.cache.num_held == min(loads, plain.cache.num_held) <= num_slots
    assert compiled.num_unused_resident == plain.cache.num_unused.sum()
    assert compiled.num_useful + compiled.num_unused_resident + plain.wasted == plain.prefetch_loads


@pytest.mark.parametrize("rule", sorted(RULE_CODES))
def test_blocks_go_on_where_the_last_one_ended(rule):
    events = random_events(3, num_iterations=20)
    whole = CompiledCache(rule, LAYERS, EXPERTS, 7).run(events)
    parts, cache, half = [], CompiledCache(rule, LAYERS, EXPERTS, 7), 10 * LAYERS
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
