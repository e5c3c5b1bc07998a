"""Eviction rules, one a file; the registry by which they are chosen."""

from collections.abc import Callable

from finemoe.cache.eviction.base import EvictionRule
from finemoe.cache.eviction.belady import Belady
from finemoe.cache.eviction.finemoe import FineMoEEviction
from finemoe.cache.eviction.least_stale import LeastStale
from finemoe.cache.eviction.least_stale_interval import LeastStaleInterval
from finemoe.cache.eviction.lfru import LFRU
from finemoe.cache.eviction.lfu import LFU
from finemoe.cache.eviction.lfu_aged import LFUAged
from finemoe.cache.eviction.lru import LRU
from finemoe.errors import FinemoeError

RULES: dict[str, Callable[[int, int], EvictionRule]] = {
    "belady": Belady,
    "finemoe": FineMoEEviction,
    "least-stale": LeastStale,
    "least-stale-interval": LeastStaleInterval,
    "lfru": LFRU,
    "lfu": LFU,
    "lfu-aged": LFUAged,
    "lru": LRU,
}


def make_rule(name: str, num_layers: int, num_experts: int, is_replay: bool = False) -> EvictionRule:
    """The rule of that name for a model of L layers and J experts.

    Args:
        is_replay: whether the future is known.
    Raises:
        FinemoeError: no rule has that name, or it must know the future.
    """
    if name not in RULES:
        raise FinemoeError(f"unknown eviction rule {name!r}; known: {', '.join(sorted(RULES))}")
    rule = RULES[name](num_layers, num_experts)
    if rule.needs_future and not is_replay:
        raise FinemoeError(f"eviction rule {name!r} must know the future; it runs in finemoe.replay only")
    return rule
