"""The matcher takes published contexts, lets the policy search, and posts its predictions (section 4.3, Fig. 7).

Searches and store updates happen in the order of publication: long ones in the matcher's thread, for which inference only appends
to a queue; short ones at once. If the thread falls several iterations behind, whole iterations are skipped (and counted), so that
no one is delayed.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from finemoe.policies.base import Context, Policy, Prediction, checked
from finemoe.policies.gate_step import GateStep
from finemoe.runtime.gates import AS_IT_IS, GateOutput, Said, as_recorded
from finemoe.runtime.lookahead import AheadOutput
from finemoe.runtime.snapshot import HostBuffers, Snapshot
from finemoe.runtime.timeline import Timeline
from finemoe.runtime.worker import InlineWorker, ThriftyWorker

_MOST_ITERATIONS_BEHIND = 4
Post = Callable[[int | None, Sequence[Prediction]], None]
Speak = Callable[[int | None, GateStep, int, Said], None]


class Matcher:
    """Feeds a policy with what inference publishes.

    Args:
        policy: the policy; only work given to the matcher touches its state, one piece at a time.
        post: called with (iteration, predictions); the iteration is None if nothing is to be loaded for them.
        timeline: records the searches.
        asynchronous: run long searches in a separate thread, from `start` on; otherwise all of them run inside `publish_*`.
        buffers: see Snapshot.
        speak: called with (iteration, step, layer, gate output) if the policy answers gates by a compiled step; None asks the
            policy in Python.
    """

    def __init__(
        self,
        policy: Policy,
        post: Post,
        timeline: Timeline,
        asynchronous: bool,
        buffers: HostBuffers | None = None,
        speak: Speak | None = None,
    ) -> None:
        self._policy, self._post, self._timeline, self._buffers = policy, post, timeline, buffers
        self._speak = speak
        self._step: GateStep | None = None  # the policy's step for this iteration
        self._worker = (ThriftyWorker if asynchronous else InlineWorker)("finemoe-matcher", "the matcher")
        self._published = self._finished = 0  # numbers of iterations
        self._accepting = self._is_following = False
        self._has_missed_start = False  # a request began with a skipped iteration
        self._num_rows, self._next_layer = 0, 0

    def start(self) -> None:
        """Start the worker."""
        self._worker.start()

    @property
    def is_asynchronous(self) -> bool:
        """Whether inference continues during searches."""
        return self._worker.is_beside

    def publish_start(
        self,
        iteration: int,
        embeddings: torch.Tensor | None,
        is_prefill: bool | None,
        starts_request: bool,
        rows: np.ndarray | None,
        is_streamed: bool = False,
    ) -> bool:
        """Start a new iteration.

        Args:
            iteration: its number.
            embeddings: [rows, h].
            is_prefill, starts_request, is_streamed: as in policies.base.Context.
            rows: indices of the rows that count (without padding), or None for all.
        Returns:
            False if the matcher is too far behind and will not see this iteration.
        """
        self._accepting = self._published - self._finished < _MOST_ITERATIONS_BEHIND
        starts_request = self._has_missed_start = starts_request or self._has_missed_start
        if self._accepting:
            self._published += 1
            self._has_missed_start = False
            vectors = None if embeddings is None else Snapshot(embeddings, self._buffers)
            kind = "start", 0 if embeddings is None else len(embeddings).bit_length()
            keep = None if vectors is None else vectors.keep
            self._worker.do(lambda: self._start(iteration, vectors, is_prefill, starts_request, rows, is_streamed), kind, keep)
        return self._accepting

    def publish_gate(
        self,
        iteration: int,
        gate: GateOutput,
        rows: np.ndarray | None,
        ahead: AheadOutput | None = None,
    ) -> None:
        """Publish a layer's gate output; `ahead` is the output of the routers applied ahead, if wanted."""
        if self._accepting:
            kind = "gate", gate.layer, len(gate.selected).bit_length()  # the last layers need no search
            keep = gate.keep if ahead is None else partial(_keep, gate, ahead)
            self._worker.do(partial(self._gate, iteration, gate, rows, ahead), kind, keep)

    def publish_end(self) -> None:
        """End the iteration after its last layer."""
        if self._accepting:
            self._accepting = False  # a later failure does not concern this iteration
            self._worker.do(self._end, "end", is_urgent=False)

    def check(self) -> None:
        """Raise the matcher's failure in the caller."""
        if self._worker.failure is not None:  # cheap: this runs in every layer
            self._worker.check()

    def flush(self) -> None:
        """Wait until everything published so far has been processed."""
        self._worker.flush()

    def forget(self) -> None:
        """Skip the rest of an iteration whose forward failed."""
        if self._accepting:
            self._accepting = False
            self._worker.do(self._skip)

    def close(self) -> None:
        """Stop after everything published so far, and wait for it."""
        self._worker.close()

    def _start(
        self,
        iteration: int,
        embeddings: Snapshot | None,
        is_prefill: bool | None,
        starts_request: bool,
        rows: np.ndarray | None,
        is_streamed: bool,
    ) -> None:
        begin_s = time.perf_counter()
        vectors = None if embeddings is None else as_recorded(embeddings.rows(rows))
        self._is_following, self._next_layer, self._step = True, 0, None
        self._num_rows = 0 if vectors is None else len(vectors)
        answer = self._policy.start_iteration(Context(vectors, is_prefill, starts_request, self._num_rows or 1, is_streamed))
        self._post(iteration, checked(answer, self._policy.setup))
        self._timeline.add("matcher", "semantic search", begin_s)

    def _gate(
        self,
        iteration: int,
        gate: GateOutput,
        rows: np.ndarray | None,
        ahead: AheadOutput | None,
    ) -> None:
        begin_s, layer = time.perf_counter(), gate.layer
        rows = rows if rows is not None and len(gate.selected) > rows.max(initial=0) else None
        said = gate.said(rows)
        num_rows = len(said.values)
        self._num_rows = self._num_rows or num_rows
        # If a layer sees only some of the rows (text but not images), there is no map to follow.
        self._is_following = self._is_following and num_rows == self._num_rows
        if self._is_following:
            if layer > self._next_layer:
                self._fill_idle_layers(layer)
            self._next_layer = layer + 1
            self._hear(iteration, layer, said, None if ahead is None else ahead.distributions(rows, num_rows))
            if self._timeline.is_recording:
                self._timeline.add("matcher", f"trajectory search {layer}", begin_s)

    def _hear(self, iteration: int | None, layer: int, said: Said, lookahead: np.ndarray | None = None) -> None:
        """Pass the next layer's gate to the policy, and post what it predicts."""
        policy = self._policy
        if not layer:
            is_asked = self._speak is None or policy.lookahead  # a step does not get look-ahead
            self._step = None if is_asked else policy.gate_step(self._num_rows)
        if self._step is not None and self._speak is not None:
            self._speak(iteration, self._step, layer, said)
        else:
            probs = said.distribution(policy.setup.num_experts, layer)
            self._post(iteration, checked(policy.on_gate(layer, probs, said.selected, lookahead), policy.setup))

    def _fill_idle_layers(self, layer: int) -> None:
        """Layers that did not run (those of another modality) count as uniform over all experts, and nothing is loaded for
        them."""
        num_rows, num_experts = self._num_rows, self._policy.setup.num_experts
        nothing = np.full((num_rows, num_experts), 1.0 / num_experts, dtype=np.float32)
        for idle in range(self._next_layer, layer):
            self._hear(None, idle, Said(nothing, np.empty((num_rows, 0), dtype=np.int64), AS_IT_IS))

    def _end(self) -> None:
        try:
            if self._is_following:
                self._policy.end_iteration()
        finally:
            self._finished += 1

    def _skip(self) -> None:
        self._finished += 1


def _keep(gate: GateOutput, ahead: AheadOutput) -> None:
    gate.keep()
    ahead.keep()
