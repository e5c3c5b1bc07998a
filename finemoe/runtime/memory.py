"""One device's expert memory: the cache's accounting, the slots behind it, and the worker that prefetches into them.

Demand goes first: while a demanded expert is being copied, the worker starts no further chunk (section 4.5, "On-demand load").
A prefetch is chosen when the link is free, by the priority it has *then*; one whose layer has come is dropped.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np

from finemoe.cache.expert_cache import ExpertCache
from finemoe.cache.state import ABSENT
from finemoe.errors import EngineError
from finemoe.policies.base import Prediction
from finemoe.report import Counters
from finemoe.runtime.lease import Lease
from finemoe.runtime.link import Completion, Link
from finemoe.runtime.pool import SlotPool
from finemoe.runtime.tiers import ExpertStore
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
        records: ExpertStore,
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
        # The slots may still be being cleared: the first copies wait for that, as later ones for what read the slot last.
        self.fences: dict[int, object | None] = dict.fromkeys(range(cache.num_slots), link.fence())
        self._iteration = 0
        self.num_demanding = 0
        self._closed = self._is_abandoned = False
        self._copier: int | None = None  # the thread that is loading what was predicted
        self._told: set[threading.Thread] = set()  # that the process ends
        self.worker = (Worker if asynchronous else InlineWorker)(f"finemoe-{name}", "the prefetch worker", self._wake_all)

    def start(self) -> None:
        """Begin to work."""
        self.worker.start()

    def start_iteration(self, iteration: int) -> None:
        """Forget prefetches of earlier iterations and what they were waiting for; iteration: the number of the new one."""
        with self.lock:
            self._iteration = iteration
            self.cache.start_iteration()

    @property
    def expected(self) -> np.ndarray:
        """[L, J] the last distribution predicted for each layer, as this device's eviction rule knows it."""
        return self.cache.expected

    def post(self, iteration: int | None, predictions: Sequence[Prediction]) -> None:
        """Hear what a policy predicts, and queue what it asks for: what is of another iteration (or of none) or of a passed layer
        is not loaded, what is here is awaited."""
        with self.lock:
            for prediction in predictions:
                self.cache.hear(prediction.layer, prediction.probabilities)
                if iteration == self._iteration:
                    self.cache.post(prediction.layer, prediction.experts)
            is_wanted = iteration == self._iteration and self.cache.num_pending > 0
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
                self.counters.prefetched(
                    self.records.layouts[layer].nbytes, self.bytes_wasted(admission.evicted) if admission.wasted else 0
                )
        self.copy_in_chunks(layer, expert, admission.slot)
        with self.lock:
            self.cache.complete(layer, expert)
            self.changed.notify_all()

    def demand(self, layer: int, experts: np.ndarray, aside: np.ndarray = _NONE) -> Lease:
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

    def bytes_wasted(self, evicted: int) -> int:
        """Bytes of an expert that had been prefetched in vain, by flat id."""
        return self.records.layouts[evicted // self.cache.state.shape[1]].nbytes

    def check(self) -> None:
        """Raise what the worker failed with, in the caller."""
        if self._is_abandoned:
            thread = threading.current_thread()
            if thread.daemon and thread in self._told:  # it tries again and again: the end must not meet it inside a kernel
                threading.Event().wait()
            self._told.add(thread)
            raise EngineError(PROCESS_ENDS)
        if self.worker.failure is not None:  # asked in every layer
            self.worker.check()

    def reset(self) -> None:
        """Empty the cache: after a forward that broke off inside a layer, nothing about its slots is certain."""
        with self.lock:
            self.cache.forget_prefetches()
            self.num_demanding = 0
            if not self.worker.is_beside:
                self._copier = None  # in line, it was a caller who broke off, perhaps in another thread
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
        return self.cache.num_pending > 0 or self._copier is not None

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
            request = None if self._closed else self.cache.take_most_urgent()
            if request is None:
                return False
            layer, expert = request
            admission = self.cache.admit(layer, expert, prefetched=True)
            if admission is None:
                return True
            self._copier = threading.get_ident()
            self.counters.prefetched(
                self.records.layouts[layer].nbytes, self.bytes_wasted(admission.evicted) if admission.wasted else 0
            )
        begin_s = time.perf_counter()
        self.copy_in_chunks(layer, expert, admission.slot)
        with self.lock:
            self._copier = None
            self.cache.complete(layer, expert)
            self.changed.notify_all()
        self.timeline.add(self.name, f"prefetch {layer}.{expert}", begin_s)
        return True

    def copy_in_chunks(self, layer: int, expert: int, slot: int) -> None:
        """Copy an expert that is not yet demanded into its slot and wait for it; what is demanded meanwhile goes first."""
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
