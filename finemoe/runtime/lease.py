"""A layer's demanded experts while it runs: weights are handed out one expert at a time, in ascending order."""

import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from finemoe.cache.expert_cache import Access
from finemoe.cache.state import LOADING, RESIDENT
from finemoe.runtime.grouped import can_group
from finemoe.runtime.link import Completion

if TYPE_CHECKING:
    from finemoe.runtime.memory import ExpertMemory


class Lease:
    """The experts of one layer on one device.

    Where the set exceeds the cache, experts already handed out make room for the next (DESIGN 4).

    Args:
        experts, aside: as in ExpertMemory.demand.
    Attributes:
        access: what was found when the gate fired.
    """

    def __init__(self, memory: "ExpertMemory", layer: int, experts: np.ndarray, aside: np.ndarray) -> None:
        self._memory, self._layer, self._experts = memory, layer, experts
        self._aside = frozenset(aside.tolist())
        self._last_aside: tuple[int, dict[str, torch.Tensor]] = (-1, {})
        self._loads: dict[int, Completion] = {}
        begin_s = time.perf_counter()
        memory.check()
        with memory.lock:
            self.access: Access = memory.cache.demand(layer, experts)
            self._missing = self.access.misses.tolist()
            memory.num_demanding += bool(self._missing)
        if self._missing:
            self._load_what_fits()
            memory.counters.stall_s += time.perf_counter() - begin_s

    def weights(self, expert: int) -> dict[str, torch.Tensor]:
        """The expert's weights by parameter name, complete and safe to read."""
        memory = self._memory
        if expert in self._aside:
            return self._weights_aside(expert)
        if memory.cache.state[self._layer, expert] != RESIDENT:
            begin_s = time.perf_counter()
            self._make_resident(expert)
            memory.counters.stall_s += time.perf_counter() - begin_s
            memory.timeline.add("compute", f"wait {self._layer}.{expert}", begin_s)
        return memory.pool.weights(self._layer, int(memory.cache.slot_of[self._layer, expert]), expert)

    @property
    def accesses(self) -> list[Access]:
        """What was found, device by device."""
        return [self.access]

    def stacked(self) -> tuple[dict[str, torch.Tensor], np.ndarray] | None:
        """All demanded experts at once, as entries of one view of the slots: weights [G, ...] by parameter name, and the entry of
        every expert [J]; None where they take turns, lie too far apart, begin unlike each other, or are served past the cache."""
        pool, cache = self._memory.pool, self._memory.cache
        if self._missing or self._aside or not pool.can_stack(self._layer):
            return None
        for expert in self._experts.tolist():
            self.weights(expert)
        slots = cache.slot_of[self._layer, self._experts].copy()
        if not can_group(slots):
            return None
        first = int(slots.min())
        entries = np.zeros(cache.state.shape[1], dtype=np.int64)
        entries[self._experts] = slots - first
        return pool.stacked(self._layer, first, int(slots.max()) - first + 1), entries

    def end(self) -> None:
        """The layer's compute has been issued: mark when its slots may be overwritten."""
        memory = self._memory
        fence = memory.link.fence()
        if fence is not None:
            for slot in memory.cache.slot_of[self._layer, self._experts].tolist():
                memory.fences[slot] = fence

    def _weights_aside(self, expert: int) -> dict[str, torch.Tensor]:
        """An expert in memory of its own, until the next one: loaded, or copied from its slot, which may go at any time."""
        if self._last_aside[0] != expert:
            memory, layer = self._memory, self._layer
            memory.check()
            layout, begin_s = memory.records.layouts[layer], time.perf_counter()
            room = torch.empty(layout.nbytes, dtype=torch.uint8, device=memory.pool.device)
            with memory.lock:
                is_here, slot = memory.cache.state[layer, expert] == RESIDENT, int(memory.cache.slot_of[layer, expert])
                if is_here:
                    room.copy_(memory.pool.bytes_of(layer, slot))
                    memory.fences[slot] = memory.link.fence()
                else:
                    memory.counters.padding_bytes += layout.nbytes
            if not is_here:
                load = memory.link.copy(memory.records.record(layer, expert), room, memory.link.fence())
                load.wait_for_reader()
                if memory.records.on_disk(layer, expert):
                    load.wait_for_host()
                memory.counters.stall_s += time.perf_counter() - begin_s
                memory.timeline.add(memory.name, f"padding {layer}.{expert}", begin_s, load.expected_end_s)
            self._last_aside = expert, layout.views(room, expert)
        return self._last_aside[1]

    def _load_what_fits(self) -> None:
        try:
            while self._missing and self._try_load(self._missing[0]):
                self._missing.pop(0)
        finally:
            with self._memory.lock:
                self._memory.num_demanding = max(0, self._memory.num_demanding - 1)
                self._memory.changed.notify_all()

    def _try_load(self, expert: int) -> bool:
        memory, layer = self._memory, self._layer
        with memory.lock:
            admission = memory.cache.admit(layer, expert, prefetched=False)
            if admission is None:
                return False
            memory.counters.demanded(
                memory.records.layouts[layer].nbytes, memory.bytes_wasted(admission.evicted) if admission.wasted else 0
            )
            fence = memory.fences.get(admission.slot)
        begin_s = time.perf_counter()
        record, slot = memory.records.record(layer, expert), memory.pool.bytes_of(layer, admission.slot)
        self._loads[expert] = load = memory.link.copy(record, slot, fence)
        if memory.records.on_disk(layer, expert):
            load.wait_for_host()  # the next read would overwrite the buffer
        memory.timeline.add(memory.name, f"demand {layer}.{expert}", begin_s, load.expected_end_s)
        return True

    def _make_resident(self, expert: int) -> None:
        memory = self._memory
        if expert in self._missing:
            self._make_room_for(expert)
        if expert in self._loads:
            self._loads.pop(expert).wait_for_reader()
            with memory.lock:
                memory.cache.complete(self._layer, expert)
            return
        with memory.lock:  # a prefetch is bringing it: late
            state = memory.cache.state
            memory.changed.wait_for(lambda: memory.is_over or state[self._layer, expert] == RESIDENT)
        memory.check()

    def _make_room_for(self, expert: int) -> None:
        memory = self._memory
        used = self._experts[self._experts < expert]
        fence = memory.link.fence()
        with memory.lock:
            for slot in memory.cache.slot_of[self._layer, used].tolist():
                memory.fences[slot] = fence
            memory.cache.release(self._layer, used)
        while not self._try_load(expert):
            self._free_a_slot(expert)
        self._missing.remove(expert)

    def _is_other_load_under_way(self) -> bool:
        return bool(np.count_nonzero(self._memory.cache.state == LOADING) > len(self._loads))

    def _free_a_slot(self, expert: int) -> None:
        """Nothing may go: wait for a prefetch in flight to end; without one, give up the hit that is needed last."""
        memory = self._memory
        with memory.lock:
            if self._is_other_load_under_way():
                memory.changed.wait_for(lambda: memory.is_over or memory.cache.can_evict or not self._is_other_load_under_way())
            elif not memory.cache.can_evict:  # or that load has ended since a slot was looked for
                ahead = self._experts[(self._experts > expert) & (memory.cache.state[self._layer, self._experts] == RESIDENT)]
                memory.cache.release(self._layer, ahead[-1:])
                self._missing.append(int(ahead[-1]))
        memory.check()
