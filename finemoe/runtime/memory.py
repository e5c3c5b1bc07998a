"""One device's expert memory: the cache's accounting, the slots behind it, and the worker that prefetches into them.

Demand goes first: while a demanded expert is being copied, the worker starts no further chunk (section 4.5, "On-demand load").
A prefetch is chosen when the link is free, by the priority it has *then*; one whose layer has come is dropped.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from finemoe.cache.expert_cache import ABSENT, LOADING, RESIDENT, Access, Admission, ExpertCache
from finemoe.errors import EngineError
from finemoe.maps.selection import prefetch_priority
from finemoe.policies.base import Prediction
from finemoe.report import Counters
from finemoe.runtime.iteration import Iteration
from finemoe.runtime.link import Completion, Link
from finemoe.runtime.pool import SlotPool
from finemoe.runtime.tiers import RecordStore
from finemoe.runtime.timeline import Timeline
from finemoe.runtime.worker import InlineWorker, Worker

PROCESS_ENDS = "the process is ending, and its engine with it; wait for threads that generate before the main thread ends"


_NONE = np.empty(0, dtype=np.int64)


class ExpertMemory:
    """Experts of one device.

    Args:
        cache: accounting; records: where experts come from; pool: where they go; link: how they get there.
        asynchronous: prefetch in a worker thread, from `start` on; else each posted prefetch is loaded before `post` returns.
        name: what the link's worker and its track in a timeline are called.
    """

    def __init__(
        self,
        cache: ExpertCache,
        records: RecordStore,
        pool: SlotPool,
        link: Link,
        counters: Counters,
        timeline: Timeline,
        asynchronous: bool,
        name: str = "link",
    ) -> None:
        self.cache, self.records, self.pool, self.link = cache, records, pool, link
        self.counters, self.timeline, self.name = counters, timeline, name
        self.lock = threading.RLock()  # taken itself: an interrupt inside a Condition's own `__enter__` would leave it locked
        self.changed = threading.Condition(self.lock)
        self._pending: dict[tuple[int, int], float] = {}
        # The slots may still be being cleared: the first copies wait for that, as later ones for what read the slot last.
        self.fences: dict[int, object | None] = dict.fromkeys(range(cache.num_slots), link.fence())
        self.iteration = Iteration(0)
        self.num_demanding = 0
        self._closed = self._is_abandoned = False
        self._copier: int | None = None  # the thread that is loading what was predicted
        self._told: set[threading.Thread] = set()  # that the process ends
        self.worker = (Worker if asynchronous else InlineWorker)(f"finemoe-{name}", "the prefetch worker", self._wake_all)

    def start(self) -> None:
        """Begin to work."""
        self.worker.start()

    def start_iteration(self, iteration: Iteration) -> None:
        """Forget prefetches of earlier iterations and what they were waiting for."""
        with self.lock:
            self.iteration = iteration
            self._pending.clear()
            self.cache.start_iteration()

    @property
    def expected(self) -> np.ndarray:
        """[L, J] the last distribution predicted for each layer, as this device's eviction rule knows it."""
        return self.cache.rule.expected

    def post(self, iteration: int | None, predictions: Sequence[Prediction]) -> None:
        """Hear what a policy predicts, and queue what it asks for: what is of another iteration (or of none) or of a passed layer
        is not loaded, what is here is awaited."""
        with self.lock:
            for prediction in predictions:
                self.expected[prediction.layer] = prediction.probabilities
            if iteration != self.iteration.number:
                return
            for prediction in predictions:
                if prediction.layer <= self.iteration.layer:
                    continue
                probabilities = prediction.probabilities[prediction.experts].tolist()
                for expert, probability in zip(prediction.experts.tolist(), probabilities, strict=True):
                    if self.cache.state[prediction.layer, expert] == ABSENT:
                        self._pending[prediction.layer, expert] = probability
                    else:
                        self.cache.expect(prediction.layer, expert)
            is_wanted = bool(self._pending)
        waited_s = self.worker.do(self._load_pending) if is_wanted else 0.0
        if waited_s:  # in line; beside, this is not the thread that counts
            self.counters.stall_s += waited_s

    def preload(self, wanted: Iterable[tuple[int, int]], is_counted: bool = True) -> None:
        """Fill free slots with these experts, (layer, expert) in order, in the calling thread; nothing is evicted.

        Args:
            is_counted: whether they count as prefetches; what stays for good does not.
        """
        for layer, expert in wanted:
            self._bring(layer, expert, is_counted, may_evict=False)

    def complete_layer(self, layer: int, experts: np.ndarray) -> None:
        """Bring in a running layer's other experts too, [n] ascending, in the calling thread, as far as slots are to be had."""
        begin_s = time.perf_counter()
        with self.lock:
            absent = experts[self.cache.state[layer, experts] == ABSENT]
        for expert in absent.tolist():
            self._bring(layer, expert, is_prefetch=True, may_evict=True)
        self.counters.stall_s += time.perf_counter() - begin_s

    def _bring(self, layer: int, expert: int, is_prefetch: bool, may_evict: bool) -> None:
        with self.lock:
            is_full = self.cache.num_held == self.cache.num_slots
            if self.cache.state[layer, expert] != ABSENT or (is_full and not may_evict):
                return
            admission = self.cache.admit(layer, expert, prefetched=is_prefetch)
            if admission is None:
                return
            if is_prefetch:
                self.counters.prefetched(self.records.layouts[layer].nbytes, self.wasted_by(admission))
        self._copy_in_chunks(layer, expert, admission.slot)
        with self.lock:
            self.cache.complete(layer, expert)
            self.changed.notify_all()

    def demand(self, layer: int, experts: np.ndarray, aside: np.ndarray = _NONE) -> "Lease":
        """Access a layer's demanded set and start loading what is missing; experts [n] ascending.

        Args:
            aside: [n] other experts, which only padding selected: they are served past the cache.
        """
        return Lease(self, layer, experts, aside)

    @property
    def unused_bytes(self) -> int:
        """Bytes of prefetched experts that hold a slot and were not demanded so far."""
        counts = self.cache.num_unused.tolist()
        return sum(count * layout.nbytes for count, layout in zip(counts, self.records.layouts, strict=True))

    def wasted_by(self, admission: Admission) -> int:
        """Bytes of the expert that made room, if it had been prefetched in vain."""
        layer = admission.evicted // self.cache.state.shape[1]
        return self.records.layouts[layer].nbytes if admission.wasted else 0

    def check(self) -> None:
        """Raise what the worker failed with, in the caller."""
        if self._is_abandoned:
            thread = threading.current_thread()
            if thread.daemon and thread in self._told:  # it tries again and again: the end must not meet it inside a kernel
                threading.Event().wait()
            self._told.add(thread)
            raise EngineError(PROCESS_ENDS)
        self.worker.check()

    def reset(self) -> None:
        """Empty the cache: after a forward that broke off inside a layer, nothing about its slots is certain."""
        with self.lock:
            self._pending.clear()
            self.num_demanding = 0
            if self._copier == threading.get_ident():
                self._copier = None  # in line, it was the caller who broke off
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.is_over or self._copier is None)
            self.counters.wasted_bytes += self.unused_bytes
            fence = self.link.fence()
            self.fences = dict.fromkeys(range(self.cache.num_slots), fence)
            self.cache.reset()

    @property
    def is_over(self) -> bool:
        """Whether nothing will be loaded any more; `check` says why."""
        return self.worker.failure is not None or self._is_abandoned

    @property
    def is_loading_ahead(self) -> bool:
        """Whether something that was predicted is being loaded, or waits to be."""
        return bool(self._pending) or self._copier is not None

    def abandon(self) -> None:
        """The process ends: stop the worker, and refuse whoever comes from now on. The slots stay, since a thread may be reading
        them."""
        self._is_abandoned = True
        self._stop()

    def close(self) -> None:
        """Stop the worker, wait for it and for the link, and give the slots back."""
        self._stop()
        self.link.finish()  # a forward that broke off leaves copies behind that nobody waited for
        self.pool.close()

    def _stop(self) -> None:
        with self.lock:
            self._closed = True
            self.num_demanding = 0
            self.changed.notify_all()
        self.worker.close()

    def _wake_all(self) -> None:
        """The worker has failed: whoever waits for it hears of it."""
        with self.lock:
            self._copier = None
            self.changed.notify_all()

    def _load_pending(self) -> None:
        while self._load_next():
            pass

    def _load_next(self) -> bool:
        """Load the most urgent prefetch as soon as nothing is demanded; False when none is left."""
        with self.lock:
            self.changed.wait_for(lambda: self._closed or not self.num_demanding)
            request = None if self._closed else self._take_most_urgent()
            if request is None:
                return False
            layer, expert = request
            admission = self.cache.admit(layer, expert, prefetched=True)
            if admission is None:
                return True
            self._copier = threading.get_ident()
            self.counters.prefetched(self.records.layouts[layer].nbytes, self.wasted_by(admission))
        begin_s = time.perf_counter()
        self._copy_in_chunks(layer, expert, admission.slot)
        with self.lock:
            self._copier = None
            self.cache.complete(layer, expert)
            self.changed.notify_all()
        self.timeline.add(self.name, f"prefetch {layer}.{expert}", begin_s)
        return True

    def _take_most_urgent(self) -> tuple[int, int] | None:
        for key in [key for key in self._pending if key[0] <= self.iteration.layer or self.cache.state[key] != ABSENT]:
            del self._pending[key]
        if not self._pending:
            return None
        urgent = max(self._pending, key=lambda key: prefetch_priority(self._pending[key], key[0], self.iteration.layer))
        del self._pending[urgent]
        return urgent

    def _copy_in_chunks(self, layer: int, expert: int, slot: int) -> None:
        record, target = self.records.record(layer, expert), self.pool.bytes_of(layer, slot)
        size = self.link.chunk_bytes
        under_way: deque[Completion] = deque()
        for source, sink in zip(record.split(size), target.split(size), strict=True):
            if len(under_way) == self.link.chunks_in_flight:
                under_way.popleft().wait_for_host()
            with self.lock:
                self.changed.wait_for(lambda: self._closed or not self.num_demanding)
            under_way.append(self.link.copy(source, sink, self.fences.get(slot)))
        for completion in under_way:
            completion.wait_for_host()


class Lease:
    """A layer's demanded experts while it runs: weights are handed out one expert at a time, in ascending order.

    Where the set exceeds the cache, experts already handed out make room for the next (DESIGN 4).
    """

    def __init__(self, memory: ExpertMemory, layer: int, experts: np.ndarray, aside: np.ndarray = _NONE) -> None:
        self._memory, self._layer, self._experts = memory, layer, experts
        self._aside = frozenset(aside.tolist())
        self._last_aside: tuple[int, dict[str, torch.Tensor]] = (-1, {})
        self._loads: dict[int, Completion] = {}
        begin_s = time.perf_counter()
        memory.check()
        with memory.lock:
            memory.iteration.layer = layer
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

    def slots(self) -> np.ndarray | None:
        """The slot of every demanded expert, [n], all complete and safe to read at once; None where they must take turns."""
        if self._missing:
            return None
        for expert in self._experts.tolist():
            self.weights(expert)
        return self._memory.cache.slot_of[self._layer, self._experts].copy()

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
            memory.counters.demanded(memory.records.layouts[layer].nbytes, memory.wasted_by(admission))
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
                memory.changed.wait_for(
                    lambda: memory.is_over or len(memory.cache.evictable()) > 0 or not self._is_other_load_under_way()
                )
            elif not len(memory.cache.evictable()):  # or that load has ended since a slot was looked for
                ahead = self._experts[(self._experts > expert) & (memory.cache.state[self._layer, self._experts] == RESIDENT)]
                memory.cache.release(self._layer, ahead[-1:])
                self._missing.append(int(ahead[-1]))
        memory.check()
