"""A second expert cache with its eviction rules, as plainly as can be (classes, NumPy, a dictionary): what the compiled one is
held against. It shares nothing with the package but the names."""

from tests.cache.readable.base import EvictionRule
from tests.cache.readable.belady import Belady
from tests.cache.readable.finemoe import FineMoEEviction
from tests.cache.readable.least_stale import LeastStale
from tests.cache.readable.least_stale_interval import LeastStaleInterval
from tests.cache.readable.lfru import LFRU
from tests.cache.readable.lfu import LFU
from tests.cache.readable.lfu_aged import LFUAged
from tests.cache.readable.lru import LRU
from tests.cache.readable.next_use import NextUse

RULES: dict[str, type[EvictionRule]] = {
    "belady": Belady,
    "finemoe": FineMoEEviction,
    "least-stale": LeastStale,
    "least-stale-interval": LeastStaleInterval,
    "lfru": LFRU,
    "lfu": LFU,
    "lfu-aged": LFUAged,
    "lru": LRU,
    "next-use": NextUse,
}
