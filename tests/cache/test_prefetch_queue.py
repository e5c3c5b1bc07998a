"""Who of the waiting prefetches is next, and who waits in vain."""

import numpy as np
import pytest

from finemoe.cache.prefetch_queue import prefetch_priority
from finemoe.cache.rules import rule_named
from tests.cache.live_cache import LiveCache

LAYERS, EXPERTS = 6, 4


def make_cache(slots: int = 12) -> LiveCache:
    return LiveCache(rule_named("lru"), LAYERS, EXPERTS, slots)


def ask(cache: LiveCache, layer: int, **probabilities: float) -> None:
    row = np.zeros(EXPERTS, dtype=np.float32)
    ids = [int(name[1:]) for name in probabilities]
    row[ids] = list(probabilities.values())
    cache.hear(layer, row)
    cache.post(layer, np.array(ids))


def order(cache: LiveCache) -> list[tuple[int, int]]:
    return list(iter(cache.take_most_urgent, None))


def test_priority_falls_with_distance():
    assert prefetch_priority(0.6, 5, 2) == pytest.approx(0.2)
    assert prefetch_priority(0.6, 0, -1) == pytest.approx(0.6)


def test_a_layer_that_has_come_has_no_priority():
    cache = make_cache()
    ask(cache, 2, e0=0.5)
    cache.demand(2, np.array([1]))
    ask(cache, 2, e3=0.5)
    ask(cache, 1, e3=0.5)
    assert order(cache) == []
    assert cache.num_pending == 0


def test_the_order_is_that_of_the_layer_that_runs_now():
    cache = make_cache()
    ask(cache, 2, e0=0.3)
    ask(cache, 4, e1=0.5)
    assert cache.take_most_urgent() == (2, 0)  # 0.3 / 3 before 0.5 / 5, while no layer runs
    ask(cache, 2, e0=0.13)
    cache.demand(0, np.array([3]))
    assert order(cache) == [(4, 1), (2, 0)]  # 0.5 / 4 before 0.13 / 2


def test_who_waits_already_keeps_its_place_and_takes_the_new_probability():
    cache = make_cache()
    ask(cache, 1, e0=0.1, e1=0.2)
    ask(cache, 1, e2=0.3, e0=0.3)
    assert order(cache) == [(1, 0), (1, 2), (1, 1)]


def test_what_has_come_meanwhile_is_not_loaded_again():
    cache = make_cache()
    ask(cache, 1, e0=0.1, e1=0.2)
    assert cache.admit(1, 1, prefetched=False) is not None
    assert order(cache) == [(1, 0)]


def test_a_new_iteration_forgets_what_waited():
    cache = make_cache()
    ask(cache, 1, e0=0.1)
    cache.start_iteration()
    assert order(cache) == []
    ask(cache, 1, e0=0.1)
    assert order(cache) == [(1, 0)]
