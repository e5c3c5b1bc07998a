"""A layer's demanded experts while it runs: the lease hands out weights one expert at a time."""

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from finemoe.cache.state import ABSENT, LOADING, RESIDENT
from finemoe.runtime import transitions
from finemoe.runtime.grouped import can_group
from finemoe.runtime.link import move, outlast
from finemoe.runtime.transitions import FAILED, HERE, MUST_READ, NO_SLOT, PATIENCE_NS

if TYPE_CHECKING:
    from finemoe.runtime.memory import ExpertMemory


class Lease:
    """The experts of one layer on one device.

    If the set exceeds the cache, experts already handed out make room for the next ones (DESIGN 4). The caller must then request
    them in ascending order.

    Args:
        memory: the device's expert memory.
        layer: the layer.
        experts, aside: as in `ExpertMemory.demand`.
    Attributes:
        experts: the demanded experts, ascending.
        found: the state of each of them when the gate fired. num_hits, num_late, num_misses: how many were in each state.
        num_recalled: how many of them were ranked among the first n, or -1 if nothing was predicted for the layer.
    """

    def __init__(self, memory: "ExpertMemory", layer: int, experts: np.ndarray, aside: np.ndarray) -> None:
        self._memory, self._layer = memory, layer
        self._aside = frozenset(aside.tolist()) if len(aside) else frozenset()
        self._last_aside: tuple[int, dict[str, torch.Tensor]] = (-1, {})
        begin_s = time.perf_counter()
        memory.check()
        found = transitions.demand(memory.board.places, layer, experts, memory.told)
        count, self.num_misses, goes_on, self.num_recalled = found
        self.experts, self.found, slots, marks = memory.told[:, :count].tolist()
        self._slots = dict(zip(self.experts, slots, strict=True))
        self.num_hits = self.found.count(RESIDENT)
        self.num_late = count - self.num_hits - self.num_misses
        self._late: set[int] = set()
        self._loads: dict[int, int] = {}  # marks of the loads in flight
        self._missing: list[int] = []  # without a slot
        if self.num_hits < count:
            self._sort_out(slots, marks, goes_on)
        if memory.is_streamed:
            memory.load_in_line()
        if self.num_misses:
            memory.counters.stall_s += time.perf_counter() - begin_s

    def weights(self, expert: int) -> dict[str, torch.Tensor]:
        """The expert's weights by parameter name, complete and safe to read."""
        memory = self._memory
        if expert in self._aside:
            return self._weights_aside(expert)
        if expert in self._loads or expert in self._late or expert in self._missing:
            begin_s = time.perf_counter()
            self._make_resident(expert)
            memory.counters.stall_s += time.perf_counter() - begin_s
            memory.timeline.add("compute", f"wait {self._layer}.{expert}", begin_s)
        return memory.pool.weights(self._layer, self._slots[expert], expert)

    def as_they_come(self, experts: Sequence[int]) -> Iterator[int]:
        """Order ascending ids so that no expert is awaited while another is available; ascending if they take turns in the
        slots."""
        if self._missing or not (self._loads or self._late):
            yield from experts
            return
        waiting = [expert for expert in experts if expert in self._loads or expert in self._late]
        yield from (expert for expert in experts if expert not in waiting)
        waiting.sort(key=self._late.__contains__)  # demand loads go before the rest of a prefetch
        while waiting:
            state = self._memory.cache.state[self._layer]
            here = next((expert for expert in waiting if state[expert] == RESIDENT), waiting[0])
            waiting.remove(here)
            yield here

    def stacked(self) -> tuple[dict[str, torch.Tensor], np.ndarray] | None:
        """All demanded experts as entries of one view of the slots.

        Returns:
            Weights [G, ...] by parameter name, and the entry of every expert [J]. None if the experts take turns, are too far
            apart, start at different offsets, or bypass the cache.
        """
        pool, cache = self._memory.pool, self._memory.cache
        if self._missing or self._aside or not pool.can_stack(self._layer):
            return None
        for expert in self.experts:
            self.weights(expert)
        slots = cache.slot_of[self._layer, self.experts].copy()
        if not can_group(slots):
            return None
        first = int(slots.min())
        entries = np.zeros(cache.state.shape[1], dtype=np.int64)
        entries[self.experts] = slots - first
        return pool.stacked(self._layer, first, int(slots.max()) - first + 1), entries

    def end(self) -> None:
        """The layer's compute has been issued: mark when its slots may be overwritten."""
        self._fence(list(self._slots.values()))

    def _fence(self, slots: list[int]) -> None:
        fence = self._memory.link.fence()
        if fence:
            self._memory.board.fences[[slot for slot in slots if slot != NO_SLOT]] = fence

    def _sort_out(self, slots: list[int], marks: list[int], goes_on: bool) -> None:
        """Classify the experts that are not resident: this layer or a prefetch loads them, or they have no slot yet."""
        places = self._memory.board.places
        try:
            for expert, found, slot, mark in zip(self.experts, self.found, slots, marks, strict=True):
                if found == LOADING:
                    self._late.add(expert)
                elif found == ABSENT and (slot == NO_SLOT or self._missing):
                    self._missing.append(expert)
                elif found == ABSENT:
                    self._note_load(expert, slot, mark)
        finally:
            if goes_on:
                transitions.end_demand(places)

    def _note_load(self, expert: int, slot: int, mark: int) -> None:
        """Note a load that has begun; start one that must be read from disk."""
        memory, layer, begin_s = self._memory, self._layer, time.perf_counter()
        if slot == FAILED:
            memory.check()
        if mark == FAILED:
            raise memory.link.failure()
        if mark == MUST_READ:
            source = memory.records.record(layer, expert).data_ptr()
            mark = transitions.start_copy(memory.board.places, memory.flat(layer, expert), slot, source)
            if mark == FAILED:
                raise memory.link.failure()
            outlast(memory.link, mark)  # the next read would overwrite the buffer
        self._slots[expert], self._loads[expert] = slot, mark
        memory.timeline.add(memory.name, f"demand {layer}.{expert}", begin_s, memory.link.end_s(mark))

    def _make_resident(self, expert: int) -> None:
        memory = self._memory
        if expert in self._missing:
            self._make_room_for(expert)
        if expert in self._loads:
            self._land(expert, self._loads.pop(expert))
        else:
            memory.wait_until_resident(self._layer, expert)
            self._late.discard(expert)

    def _land(self, expert: int, mark: int) -> None:
        memory, flat = self._memory, self._memory.flat(self._layer, expert)
        must_wait = memory.link.waits_on_host
        if not must_wait:
            memory.link.order(mark)
        while (found := transitions.land(memory.board.places, flat, mark, must_wait, PATIENCE_NS)) == 0:
            memory.check()
        if found == FAILED:
            raise memory.link.failure()

    def _make_room_for(self, expert: int) -> None:
        memory = self._memory
        used = [one for one in self.experts if one < expert]
        self._fence([self._slots[one] for one in used])
        transitions.release(memory.board.places, self._layer, np.array(used, dtype=np.int64))
        while True:
            slot, mark = transitions.load_late(memory.board.places, memory.flat(self._layer, expert))
            if slot != NO_SLOT:
                break
            self._free_a_slot(expert)
        if mark == HERE:
            self._slots[expert] = slot
        else:
            self._note_load(expert, slot, mark)
        self._missing.remove(expert)

    def _free_a_slot(self, expert: int) -> None:
        """No expert may be evicted: wait for a prefetch in flight to end, or without one give up the hit needed last."""
        memory, layer = self._memory, self._layer
        if not transitions.can_make_room(memory.board.places, len(self._loads), PATIENCE_NS):
            ahead = [one for one in self.experts if one > expert and memory.cache.state[layer, one] == RESIDENT][-1:]
            transitions.release(memory.board.places, layer, np.array(ahead, dtype=np.int64))
            self._missing += ahead
        memory.check()

    def _weights_aside(self, expert: int) -> dict[str, torch.Tensor]:
        """An expert in separate memory until the next one: loaded, or copied from its slot, which may be evicted at any time."""
        if self._last_aside[0] != expert:
            memory, layer = self._memory, self._layer
            memory.check()
            layout, begin_s = memory.records.layouts[layer], time.perf_counter()
            room = torch.empty(layout.nbytes, dtype=torch.uint8, device=memory.pool.device)
            slot = transitions.hold(memory.board.places, memory.flat(layer, expert))
            if slot != NO_SLOT:
                room.copy_(memory.pool.bytes_of(layer, slot))
                self._fence([slot])
                transitions.release(memory.board.places, layer, np.array([expert]))
            else:
                memory.counters.padding_bytes += layout.nbytes
                self._load_aside(expert, room)
                memory.counters.stall_s += time.perf_counter() - begin_s
                memory.timeline.add(memory.name, f"padding {layer}.{expert}", begin_s)
            self._last_aside = expert, layout.views(room, expert)
        return self._last_aside[1]

    def _load_aside(self, expert: int, room: torch.Tensor) -> None:
        link, records = self._memory.link, self._memory.records
        mark = move(link, records.record(self._layer, expert), room, link.fence())
        if link.waits_on_host or records.on_disk(self._layer, expert):
            outlast(link, mark)
        else:
            link.order(mark)
