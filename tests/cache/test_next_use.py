"""The rule that forecasts next uses: what it learns, whom it believes, and what it makes of large sets."""

import numpy as np
import pytest

from finemoe.cache.rules import next_use, rule_named
from finemoe.cache.rules.next_use import COMING, LATER, NEWEST, TABLES
from tests.cache.live_cache import LiveCache

LAYERS, EXPERTS = 3, 8
CYCLE = np.array([[0, 1], [2, 3], [4, 5], [0, 6]])  # what every layer demands, turn by turn


def run_cycle(num_turns: int, rule: str = "next-use", num_slots: int = 9) -> tuple[LiveCache, float]:
    """A cache that loads what is missing, and its hit rate over the last hundred turns."""
    cache, hits = LiveCache(rule_named(rule), LAYERS, EXPERTS, num_slots), []
    for turn in range(num_turns):
        for layer in range(LAYERS):
            access = cache.demand(layer, CYCLE[turn % len(CYCLE)])
            for expert in access.misses.tolist():
                cache.admit(layer, expert, False)
                cache.complete(layer, expert)
            hits.append(len(access.hits) / 2)
    return cache, float(np.mean(hits[-100 * LAYERS :]))


def test_what_follows_what_is_learned():
    cache, _ = run_cycle(2000)
    coming = own_row(cache, COMING)
    is_next = np.isin(np.arange(EXPERTS), CYCLE[2000 % len(CYCLE)])
    assert coming[:, is_next].min() > 0.9
    assert coming[:, ~is_next].max() < 0.1


def test_an_expert_used_twice_a_cycle_is_worth_more_later_on():
    """After the third set comes (0, 6), and after that (0, 1): 1 is needed two turns from now, 2 three, 4 four."""
    cache, _ = run_cycle(2003)
    later = own_row(cache, LATER).mean(axis=0)
    assert later[1] > later[2] > later[4]
    assert later[1] == pytest.approx(1.0, abs=0.1)
    assert later[2] == pytest.approx(next_use.DISCOUNT, abs=0.1)


def test_routing_with_an_order_is_kept_better_than_by_recency_or_frequency():
    rates = {rule: run_cycle(2000, rule)[1] for rule in ("next-use", "lru", "lfu", "lfu-aged", "lfru")}
    assert rates["next-use"] > 0.1 + max(rate for rule, rate in rates.items() if rule != "next-use")


def own_row(cache: LiveCache, row: int) -> np.ndarray:
    return cache._arrays.stats.own[row].reshape(LAYERS, EXPERTS)


def worth_of(cache: LiveCache, layer: int) -> np.ndarray:
    experts, worth = np.arange(layer * EXPERTS, (layer + 1) * EXPERTS), np.zeros(EXPERTS)
    cache.rule.weigh(cache._arrays.stats, experts, worth)
    return worth


def test_a_policy_is_believed_for_the_turn_that_it_foretells_and_no_longer():
    cache, _ = run_cycle(400)
    own = worth_of(cache, 1)
    told = np.zeros(EXPERTS, dtype=np.float32)
    told[7] = 1.0
    cache.hear(1, told)
    assert worth_of(cache, 1).argmax() == 7 != own.argmax()
    cache.demand(1, CYCLE[0])
    assert worth_of(cache, 1).argmax() != 7


def test_a_set_of_most_experts_says_nothing_about_others():
    cache, _ = run_cycle(1)
    cache.demand(0, np.arange(5))
    assert own_row(cache, NEWEST)[0, 0] == -1
    cache.demand(0, np.arange(4))
    assert own_row(cache, NEWEST)[0, :5].tolist() == [0, 1, 2, 3, -1]


@pytest.mark.parametrize(("num_experts", "tables"), [(1, 16), (8, 16), (32, 16), (60, 8), (128, 4), (256, 2), (512, 2)])
def test_memory_is_bounded(num_experts, tables):
    assert len(next_use.own(num_experts)) == TABLES + tables * num_experts
