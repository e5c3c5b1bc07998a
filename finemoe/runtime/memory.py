"""The expert memory of one device: the cache's accounting, the slots behind it, and the worker that prefetches into them.

Demand goes first: while a demanded expert is being copied, the worker starts no further chunk (section 4.5, "On-demand load").
A prefetch is chosen when the link is free, by the priority it has *then*, and dropped once its layer has started. Every change of
the cache is a transition, which inference and the worker run outside the interpreter's lock (`transitions`).
"""

import threading
import time
import warnings
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np

from finemoe.cache.expert_cache import ExpertCache
from finemoe.cache.state import ABSENT, ANY_GAIN, LEAST_GAIN
from finemoe.errors import EngineError, FinemoeError
from finemoe.maps.following import OUT_OF_PLACE
from finemoe.policies.base import Prediction
from finemoe.policies.gate_step import GateStep
from finemoe.report import WASTED, Counters
from finemoe.runtime import fetching, hearing, transitions
from finemoe.runtime.board import HAS_RULE_FAILED, SLOT, Board
from finemoe.runtime.gates import Said
from finemoe.runtime.hearing import NO_DISTRIBUTION
from finemoe.runtime.lease import Lease
from finemoe.runtime.link import Link, outlast
from finemoe.runtime.pool import SlotPool
from finemoe.runtime.tiers import ExpertStore
from finemoe.runtime.timeline import Span, Timeline
from finemoe.runtime.transitions import CLOSED, FAILED, PATIENCE_NS
from finemoe.runtime.worker import InlineWorker, Worker

PROCESS_ENDS = "the process is ending, and its engine with it; join generating threads before the main thread ends"
_NONE = np.empty(0, dtype=np.int64)
_MOST_SPANS = 1 << 20


class ExpertMemory:
    """The experts on one device.

    Args:
        cache: the accounting.
        records: the store that experts come from.
        pool: the slots that experts go to.
        link: the link that copies them.
        counters, timeline: record what happens.
        asynchronous: prefetch in a worker thread, from `start` on; otherwise `post` loads each prefetch before it returns.
        name: name of the link's worker thread and of its track in a timeline.
    Attributes:
        is_streamed: whether the iteration is streamed.
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
        self._moved = counters.moved_by_device()
        where = records.addresses(cache.state.shape[1]), records.sizes(cache.state.shape[1])
        self.board = Board(cache.arrays, cache.rule, *where, pool.address(0), pool.slot_bytes, self._moved)
        self.board.connect(link)
        self._links = [link]  # all links so far: a replaced link may still fence slots
        # The slots may still be being cleared: the first copies wait for that, as later ones wait for a slot's last reader.
        self.board.fences[:] = link.fence()
        self.told = np.zeros((4, cache.state.shape[1]), dtype=np.int64)  # filled by each demand
        self._is_local, self.is_streamed = cache.is_local.copy(), False
        self._is_abandoned = False
        self._unheard: set[threading.Thread] = set()  # threads that have been refused because the process ends
        self.worker = (Worker if asynchronous else InlineWorker)(f"finemoe-{name}", "the prefetch worker", self._give_up)
        self._noted = np.zeros((0, 3), dtype=np.int64)  # loads of the worker; see `fetching.note_in`
        timeline.watch(self._record_spans, self._spans)

    def connect(self, link: Link) -> None:
        """Load experts over this link from now on, once no prefetch is pending on the previous link."""
        while not self.is_over and not self.wait_until_idle():
            pass
        self.link = link
        self._links.append(link)
        self.board.connect(link)

    def start(self) -> None:
        """Start the worker."""
        self.worker.start()
        if self.worker.is_beside:
            self.worker.do(self._serve)

    def start_iteration(self, iteration: int, is_streamed: bool = False) -> None:
        """Forget prefetches of earlier iterations and what they were waiting for.

        Args:
            iteration: the number of the new one.
            is_streamed: whether its layers are loaded ahead, whatever the policy predicts (`cache.streaming`).
        """
        if is_streamed:
            may_run = self.board.has_run | (iteration <= 1)  # see `hearing`: not a layer that has been idle so far
            self.cache.is_local[:] = self._is_local & may_run[:, None]
        self.is_streamed = is_streamed
        transitions.start_iteration(self.board.places, iteration, is_streamed)
        if is_streamed:
            self.load_in_line()

    @property
    def expected(self) -> np.ndarray:
        """[L, J] the last distribution predicted for each layer, as seen by this device's eviction rule."""
        return self.cache.expected

    def post(self, iteration: int | None, predictions: Sequence[Prediction]) -> None:
        """Take a policy's predictions and queue the experts that they request.

        Predictions for another iteration (or none), for a passed layer, or for a layer that was skipped while others ran are not
        loaded; experts that are already here are marked as awaited.
        """
        places, number, is_wanted = self.board.places, -1 if iteration is None else iteration, False
        for one in predictions:
            is_wanted |= hearing.post(places, number, one.layer, one.probabilities, one.experts)
        if is_wanted:
            self.load_in_line()

    def speak(self, iteration: int | None, step: GateStep, layer: int, said: Said) -> None:
        """Like `post`, for what a policy's compiled step predicts after the gate of a layer.

        Raises:
            EngineError: the gate's output is not a distribution.
            FinemoeError: the step does not accept the gate as one of this iteration, or predicts something impossible.
        """
        number = -1 if iteration is None else iteration
        found = hearing.speak(self.board.places, step.address, step.table, step.num_targets, number, layer, *said)
        if found == NO_DISTRIBUTION:
            said.distribution(self.cache.state.shape[1], layer)  # raises
        if found == OUT_OF_PLACE:
            raise FinemoeError(f"the policy's compiled step does not accept the gate of layer {layer} as one of this iteration")
        if found < 0:
            raise FinemoeError(f"the policy's compiled step made an impossible prediction after the gate of layer {layer}")
        if found:
            self.load_in_line()

    def load_in_line(self) -> None:
        """Load what was requested before going on, unless a worker does so."""
        if not self.worker.is_beside:
            self.counters.stall_s += self.worker.do(self._load_pending)

    def preload(self, wanted: Iterable[tuple[int, int]], is_counted: bool = True) -> None:
        """Fill free slots with these experts, (layer, expert) in order, in the calling thread; nothing is evicted.

        Args:
            is_counted: whether they count as prefetches; experts that stay for good do not.
        """
        counts = self.cache.arrays.counts
        least_gain, counts[LEAST_GAIN] = int(counts[LEAST_GAIN]), ANY_GAIN  # a free slot need not pay for what it evicts
        try:
            for layer, expert in wanted:
                self._bring(layer, expert, is_counted, may_evict=False)
        finally:
            counts[LEAST_GAIN] = least_gain

    def complete_layer(self, layer: int, experts: np.ndarray) -> None:
        """Load a running layer's other experts too, [n] ascending, in the calling thread, as far as there are slots."""
        begin_s = time.perf_counter()
        for expert in experts[self.cache.state[layer, experts] == ABSENT].tolist():
            self._bring(layer, expert, is_counted=True, may_evict=True)
        self.counters.stall_s += time.perf_counter() - begin_s

    def _bring(self, layer: int, expert: int, is_counted: bool, may_evict: bool) -> None:
        slot = fetching.reserve(self.board.places, self.flat(layer, expert), may_evict, is_counted)
        if slot == FAILED:
            self.check()
        if slot >= 0:
            self.copy_in_chunks(layer, expert, slot)
            fetching.settle(self.board.places, self.flat(layer, expert))

    def flat(self, layer: int, expert: int) -> int:
        """An expert's flat id."""
        return layer * self.cache.state.shape[1] + expert

    def demand(self, layer: int, experts: np.ndarray, aside: np.ndarray = _NONE) -> Lease:
        """Access a layer's demanded set and start loading what is missing.

        Args:
            layer: the layer.
            experts: [n] ids, in any order and possibly repeated.
            aside: [n] other experts, which only padding selected; they bypass the cache.
        """
        return Lease(self, layer, experts, aside)

    @property
    def unused_bytes(self) -> int:
        """Bytes of prefetched experts that hold a slot and have not been demanded yet."""
        counts = self.cache.num_unused.tolist()
        return sum(count * layout.nbytes for count, layout in zip(counts, self.records.layouts, strict=True))

    def check(self) -> None:
        """Raise in the caller what the worker or the eviction rule failed with."""
        if self._is_abandoned:
            thread = threading.current_thread()
            if thread.daemon and thread in self._unheard:  # it keeps retrying; do not let it be inside a kernel at exit
                threading.Event().wait()
            self._unheard.add(thread)
            raise EngineError(PROCESS_ENDS)
        if self.worker.failure is not None:  # cheap: this runs in every layer
            self.worker.check()
        if self.board.places[HAS_RULE_FAILED]:
            raise self.cache.rule_failure()

    def reset(self) -> None:
        """Empty the cache: after a forward that failed inside a layer, the contents of its slots are unknown."""
        places = self.board.places
        fetching.forget(places)
        if not self.worker.is_beside:
            fetching.leave(places)  # without a worker, the caller itself failed, perhaps in another thread
        while not self.is_over and not self.wait_until_idle():
            pass
        self._moved[WASTED] += self.unused_bytes
        self.board.fences[:] = self.link.fence()
        fetching.empty(places)

    @property
    def is_over(self) -> bool:
        """Whether no more loads will happen; `check` raises the reason."""
        return self.worker.failure is not None or self._is_abandoned

    @property
    def is_loading_ahead(self) -> bool:
        """Whether a predicted expert is being loaded or waits to be."""
        return self.cache.num_pending > 0 or self.board.copier >= 0

    def wait_until_idle(self, timeout_s: float = PATIENCE_NS / 1e9) -> bool:
        """Wait until no predicted expert is being loaded or waits to be; returns whether that is so."""
        return bool(fetching.wait_idle(self.board.places, int(timeout_s * 1e9)))

    def wait_until_resident(self, layer: int, expert: int) -> None:
        """Wait for an expert that another thread loads.

        Raises:
            EngineError: no thread will load it.
        """
        while not transitions.wait_resident(self.board.places, self.flat(layer, expert), PATIENCE_NS):
            self.check()

    def abandon(self) -> None:
        """At process exit, stop the worker and refuse further callers. The slots stay, since a thread may still be reading
        them."""
        self._is_abandoned = True
        self._stop()

    def close(self) -> None:
        """Stop the worker, wait for it and for the link, and free the slots."""
        self._stop()
        for link in self._links:
            link.finish()  # a failed forward leaves copies behind that no thread waited for
            link.close()
        self.pool.close()

    def _stop(self) -> None:
        fetching.close(self.board.places)
        self.worker.close()

    def _give_up(self) -> None:
        """After a failure of the worker: wake the threads that wait for it."""
        fetching.leave(self.board.places)

    def _serve(self) -> None:
        """The main loop of the worker's thread, almost entirely compiled."""
        while (flat := fetching.serve(self.board.places)) != CLOSED:
            if flat == FAILED:
                raise self._failure()
            self._load(flat)  # from disk

    def _failure(self) -> BaseException:
        return self.cache.rule_failure() if self.board.places[HAS_RULE_FAILED] else self.link.failure()

    def _load_pending(self) -> None:
        while (flat := fetching.take_next(self.board.places)) >= 0:
            self._load(flat)
        if flat == FAILED:
            self.check()

    def _load(self, flat: int) -> None:
        """Load a predicted expert into the slot that it holds."""
        (layer, expert), begin_s = divmod(flat, self.cache.state.shape[1]), time.perf_counter()
        self.copy_in_chunks(layer, expert, int(self.board.places[SLOT]))
        fetching.settle(self.board.places, flat)
        self.timeline.add(self.name, f"prefetch {layer}.{expert}", begin_s)

    def copy_in_chunks(self, layer: int, expert: int, slot: int) -> None:
        """Copy an expert that is not demanded yet into its slot and wait for it; demanded experts go first meanwhile."""
        record, sink = self.records.record(layer, expert), self.pool.address(slot)
        source, size, chunk = record.data_ptr(), record.numel(), self.link.chunk_bytes
        under_way: deque[int] = deque()
        for start in range(0, size, chunk):
            if len(under_way) == self.link.chunks_in_flight:
                outlast(self.link, under_way.popleft())
            while not fetching.let_demands_pass(self.board.places, PATIENCE_NS):
                pass
            mark = self.link.copy(sink + start, source + start, min(chunk, size - start), int(self.board.fences[slot]))
            if mark < 0:
                raise self.link.failure()
            under_way.append(mark)
        for mark in under_way:
            outlast(self.link, mark)

    def _record_spans(self) -> None:
        spans = np.zeros((_MOST_SPANS, 3), dtype=np.int64)
        fetching.note_in(self.board.places, spans.ctypes.data, len(spans))
        self._noted = spans  # only now: until here the worker writes to the previous array

    def _spans(self) -> Iterable[Span]:
        count = fetching.note_in(self.board.places, 0, 0)
        noted, self._noted = self._noted[:count], self._noted[:0].copy()
        if count > len(noted):
            warnings.warn(
                f"the timeline lacks {self.name}'s last {count - len(noted)} loads; record fewer iterations", stacklevel=2
            )
        for flat, begin_ns, end_ns in noted.tolist():
            layer, expert = divmod(flat, self.cache.state.shape[1])
            yield self.name, f"prefetch {layer}.{expert}", begin_ns / 1e9, end_ns / 1e9
