"""The state that inference and the worker of a device's link share: one array of numbers and addresses for compiled code.

Both work on it outside the interpreter's lock, and take turns at the board's own lock (`transitions`). Python holds the arrays at
those addresses and reads them; it changes what the lock protects only while no other thread works on it.
"""

from typing import Any

import numpy as np

from finemoe.cache.addresses import addresses_of
from finemoe.cache.rules.base import EvictionRule
from finemoe.cache.state import CacheState
from finemoe.native import new_condition, new_mutex
from finemoe.runtime.link import Link

# Places on the board. The lock of everything below; conditions for the worker, and for threads that wait for an expert.
MUTEX, WORK, CHANGED = range(3)
# Addresses of: the eviction rule's functions; the cache's addresses and their number; every expert's record (0 if it must be
# read from disk) and its size; the slots and the distance between them; the fence of every slot.
WEIGH, VISIT, CACHE, NUM_CACHE, RECORDS, SIZES, SLOTS, SLOT_BYTES, FENCES = range(3, 12)
# The link: its functions and their first argument; bytes per chunk, the number of chunks in flight, and their marks.
COPY, WAIT, LINK, CHUNK_BYTES, IN_FLIGHT, MARKS = range(12, 18)
# Current state: the iteration's number; how many layers demand loads; whether the worker is to end; the expert that is being
# loaded ahead, or -1, and its slot; whether the rule has failed.
ITERATION, DEMANDING, IS_CLOSED, COPIER, SLOT, HAS_RULE_FAILED = range(18, 24)
# Bytes moved, by `MOVED` (see Counters); spans for a timeline, their capacity and their number.
MOVED_BYTES, SPANS, NUM_SPANS, SPAN = range(24, 28)
# Addresses of the predictions: by layer, the iteration in which it was last predicted before its gate fired, the distribution
# predicted, and whether it has ever run.
FORESEEN_IN, FORESEEN, HAS_RUN = range(28, 31)
NUM_PLACES = 31
MOST_IN_FLIGHT = 64


class Board:
    """The board of one device.

    Args:
        cache, rule: the accounting and the eviction rule.
        records, sizes: [N] address and size in bytes of every expert's record, by flat id.
        slots: address of the first slot.
        slot_bytes: distance between slots.
        moved_bytes: [NUM_MOVED] counters of loaded bytes.
    Attributes:
        places: [NUM_PLACES] int64, the whole board.
        fences: [S] mark after which each slot may be overwritten.
        foreseen_in: [L] iteration in which a layer was last predicted before its gate fired, -1 if never.
        foreseen: [L, J] float32, the predicted distribution.
        has_run: [L] whether the layer has ever run.
    """

    def __init__(
        self,
        cache: CacheState,
        rule: EvictionRule,
        records: np.ndarray,
        sizes: np.ndarray,
        slots: int,
        slot_bytes: int,
        moved_bytes: np.ndarray,
    ) -> None:
        self.places = places = np.zeros(NUM_PLACES, dtype=np.int64)
        self.fences, self._marks = np.zeros(len(cache.held), dtype=np.int64), np.zeros(MOST_IN_FLIGHT, dtype=np.int64)
        num_layers, num_experts = len(cache.stats.turns), cache.stats.num_experts
        self.foreseen_in, self.has_run = np.full(num_layers, -1, dtype=np.int64), np.zeros(num_layers, dtype=np.bool_)
        self.foreseen = np.zeros((num_layers, num_experts), dtype=np.float32)
        self._table = addresses_of(cache)
        self._kept: list[Any] = [cache, rule, records, sizes, moved_bytes]  # keeps alive the memory behind the addresses
        for place, array in (
            (MUTEX, new_mutex()),
            (WORK, new_condition()),
            (CHANGED, new_condition()),
            (CACHE, self._table),
            (RECORDS, records),
            (SIZES, sizes),
            (FENCES, self.fences),
            (MARKS, self._marks),
            (MOVED_BYTES, moved_bytes),
            (FORESEEN_IN, self.foreseen_in),
            (FORESEEN, self.foreseen),
            (HAS_RUN, self.has_run),
        ):
            self._kept.append(array)
            places[place] = array.ctypes.data
        places[[WEIGH, VISIT]] = rule.addresses()
        places[[NUM_CACHE, SLOTS, SLOT_BYTES, COPIER]] = len(self._table), slots, slot_bytes, -1

    def connect(self, link: Link) -> None:
        """Send copies over this link (see `link.Link`) from now on; call it only while no copy is in flight."""
        addresses = link.addresses
        self._kept.append(link)
        self.places[[COPY, WAIT, LINK]] = addresses
        self.cut(link.chunk_bytes, link.chunks_in_flight)

    def cut(self, chunk_bytes: int, in_flight: int) -> None:
        """Set the chunk size of prefetches, in bytes, and how many chunks are in flight."""
        self.places[[CHUNK_BYTES, IN_FLIGHT]] = chunk_bytes, min(in_flight, MOST_IN_FLIGHT)

    @property
    def copier(self) -> int:
        """Flat id of the expert that is being loaded ahead, or -1."""
        return int(self.places[COPIER])
