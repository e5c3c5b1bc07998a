"""What inference and the worker of a device's link share: one array of numbers and addresses that compiled code works on.

Both run outside the interpreter's lock there, and take turns at the board's own (`transitions`). Python holds the arrays that
lie at the addresses, and looks; what the lock protects it changes only while nothing else does.
"""

from typing import Any

import numpy as np

from finemoe.cache.addresses import addresses_of
from finemoe.cache.rules.base import EvictionRule
from finemoe.cache.state import CacheState
from finemoe.native import new_condition, new_mutex
from finemoe.runtime.link import Link

# Places on the board. Locks: of all below; for the worker, and for whoever waits for an expert.
MUTEX, WORK, CHANGED = range(3)
# Addresses of: the eviction rule's functions; the cache's addresses and their number; every expert's record (0 where it must be
# read from disk) and its bytes; the slots, and how far they lie apart; the fence of every slot.
WEIGH, VISIT, CACHE, NUM_CACHE, RECORDS, SIZES, SLOTS, SLOT_BYTES, FENCES = range(3, 12)
# The link: its functions and what they are handed; bytes of a chunk, and how many are under way at a time, with their marks.
COPY, WAIT, LINK, CHUNK_BYTES, IN_FLIGHT, MARKS = range(12, 18)
# What goes on: the iteration's number; how many layers demand loads; whether the worker is to end; the expert that is loaded
# ahead of its time, or -1, and its slot; whether the rule has failed.
ITERATION, DEMANDING, IS_CLOSED, COPIER, SLOT, HAS_RULE_FAILED = range(18, 24)
# What was moved, by `MOVED` (see Counters); spans for a timeline, how many there is room for and how many there are.
MOVED_BYTES, SPANS, NUM_SPANS, SPAN = range(24, 28)
# Addresses of what is foreseen: by layer, in which iteration it was last foreseen before its gate spoke, as what, and whether it
# has ever run.
FORESEEN_IN, FORESEEN, HAS_RUN = range(28, 31)
NUM_PLACES = 31
MOST_IN_FLIGHT = 64


class Board:
    """One device's.

    Args:
        cache, rule: what is accounted for, and who goes. records, sizes: [N] address and bytes of every expert's record, by flat
            id.
        slots: where the first slot lies; slot_bytes: how far they lie apart. moved_bytes: [NUM_MOVED] where loads are counted.
    Attributes:
        places: [NUM_PLACES] int64, all of it. fences: [S] after what each slot may be overwritten.
        foreseen_in: [L] iteration in which a layer was last foreseen before its gate spoke, -1 if never.
        foreseen: [L, J] float32, as what. has_run: [L] whether the layer has ever run.
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
        self._kept: list[Any] = [cache, rule, records, sizes, moved_bytes]  # whose memory the addresses are of
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
        """Copies go over this link (see `link.Link`) from now on; called while none is under way."""
        addresses = link.addresses
        self._kept.append(link)
        self.places[[COPY, WAIT, LINK]] = addresses
        self.cut(link.chunk_bytes, link.chunks_in_flight)

    def cut(self, chunk_bytes: int, in_flight: int) -> None:
        """In what pieces prefetches go."""
        self.places[[CHUNK_BYTES, IN_FLIGHT]] = chunk_bytes, min(in_flight, MOST_IN_FLIGHT)

    @property
    def copier(self) -> int:
        """Flat id of the expert that is being loaded ahead, or -1."""
        return int(self.places[COPIER])
