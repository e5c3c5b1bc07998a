"""An attached model's forwards as its engine sees them: one object per forward, which begins, is published, is counted and ends.
A forward that fails is abandoned."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finemoe.draft_counts import DraftCounts
from finemoe.errors import EngineError
from finemoe.maps.expert_map import lookahead_width
from finemoe.report import REQUESTS_KEPT, Counters
from finemoe.runtime.gates import GateOutput
from finemoe.runtime.lookahead import AheadOutput, Choice
from finemoe.runtime.phases import Forward, Phase

if TYPE_CHECKING:
    from finemoe.runtime.drafts import Drafts
    from finemoe.runtime.observer import Observer
    from finemoe.runtime.parts import Parts

_NOTHING_KNOWN = Forward(Phase.UNKNOWN, 0, False)


class Iteration:
    """One forward; each forward has its own object.

    Args:
        number: from 1 on; 0 is before the first.
        forward: what is known about it.
        num_rows: number of its token rows, padding included.
    Attributes:
        layer: the MoE layer that is running or ran last; -1 before the first.
        rows: [n] indices of the token rows that count, or None if all do.
        begin_s: start time (time.perf_counter).
        is_open: whether more of it may come.
        is_published: whether the policy sees it.
        gate: a layer's gate output while it waits to be published.
        router_weights: by layer, the router's weights of the selected experts, [rows, K].
    """

    def __init__(self, number: int, forward: Forward = _NOTHING_KNOWN, num_rows: int = 0) -> None:
        self.number, self.forward, self.num_rows = number, forward, num_rows
        self.rows: np.ndarray | None = None if forward.rows is None else forward.rows.cpu().numpy()
        self.layer = -1
        self.begin_s = time.perf_counter()
        self.is_open, self.is_published = number > 0, False
        self.gate: GateOutput | None = None
        self.router_weights: dict[int, torch.Tensor] = {}

    @property
    def num_counting(self) -> int:
        """Number of rows that count."""
        return self.num_rows if self.rows is None else len(self.rows)

    def require_numbers(self) -> None:
        """Check that no router emitted NaN.

        A router's NaN spreads to all later layers, so checking the last layer suffices; the first such layer is then named.

        Raises:
            EngineError: a router emitted NaN.
        """
        if not self.router_weights or not self._has_nan(max(self.router_weights)):
            return
        first = next(layer for layer in sorted(self.router_weights) if self._has_nan(layer))
        raise EngineError(
            f"the router of MoE layer {first} emitted NaN; the model's weights or its input are not finite; check both"
        )

    def _has_nan(self, layer: int) -> bool:
        weights = self.router_weights[layer]
        if self.rows is not None and len(weights) > self.rows.max(initial=0):
            weights = weights[torch.from_numpy(self.rows).to(weights.device)]
        return bool(weights.isnan().any())


class Durations:
    """Assigns an iteration's duration to prefill or decode; a prompt that is fed in pieces is one prefill.

    Args:
        counters: receives the durations.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._prefills_s: dict[int, float] = {}  # duration of the prefill, for requests that ran nothing since

    def reset(self) -> None:
        """Forget prefills; later pieces of their prompts count as unknown."""
        self._prefills_s.clear()

    def count(self, forward: Forward, duration_s: float) -> None:
        """Count an iteration that has ended."""
        counters, phase, request = self._counters, forward.phase, forward.request
        prefill_s = self._prefills_s.pop(request, None)
        if prefill_s is not None and phase in (Phase.PIECE, Phase.SEVERAL):  # several tokens: the rest of the prompt, or drafts
            counters.correct_prefill(prefill_s, duration_s if phase is Phase.PIECE else None)
        if phase is Phase.PREFILL:
            counters.count_prefill(duration_s)
            self._prefills_s[request] = duration_s
            if len(self._prefills_s) > REQUESTS_KEPT:
                del self._prefills_s[next(iter(self._prefills_s))]
        elif phase is Phase.PIECE and prefill_s is not None:
            self._prefills_s[request] = prefill_s + duration_s
        elif phase is Phase.DECODE:
            counters.count_decode_step(duration_s)
            if forward.drafts is not None:
                forward.drafts.is_counted = True
                counters.count_drafts(DraftCounts(num_steps=1, num_open_steps=1))
        else:  # also a piece whose start was not seen or came before a reset
            counters.num_decode_steps += phase is Phase.SEVERAL
            counters.num_unknown_steps += 1


class Iterations:
    """Is notified by the observer, the routers applied ahead and the running layers; notifies matcher and memories.

    Args:
        parts: the engine's parts.
    Attributes:
        current: the current iteration, or the last one if none is running.
        durations: counts how long they took.
    """

    def __init__(self, parts: "Parts") -> None:
        self._parts, self._session = parts, parts.session
        self._kept = lookahead_width(parts.setup.num_experts, parts.setup.top_k)
        self.current = Iteration(0)
        self.durations = Durations(parts.counters)
        self._is_moving = False

    def on_forward_start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The model's forward begins (the observer calls this, like all methods on_...).

        Raises:
            EngineError: another thread is inside the model, or a worker failed.
        """
        if self._session.enter():  # otherwise the engine was closed meanwhile, and the forward runs on the restored model
            self.recover()
            self.raise_failures()
            self.current.is_open = False

    def on_start(self, embeddings: torch.Tensor, forward: Forward) -> None:
        """The embedding layer has run: start a new iteration, unless the layer runs twice before the first MoE layer."""
        is_used_twice = self.current.is_open and self.current.layer < 0
        if self._session.depth and not self._session.is_closed and not is_used_twice:
            self._start(embeddings, forward, len(embeddings))

    def wants_ahead(self, layer: int) -> bool:
        """Whether routers are to be applied ahead once an MoE layer's decoder layer has run."""
        gate = self.current.gate
        return gate is not None and gate.layer == layer and not self._session.is_anothers

    def on_ahead(self, layer: int, choices: Sequence[Choice | None], targets: Sequence[int]) -> None:
        """The routers have been applied ahead (only if the policy looks ahead): publish their output with the gate's."""
        with self.moving():
            self.publish_gate(AheadOutput(choices, targets, self._parts.setup.num_experts, self._kept, self._parts.buffers))

    def on_forward_complete(self) -> None:
        """The model's forward returns, after its last layer.

        Raises:
            EngineError: a worker failed, or a router emitted NaN.
        """
        if self._session.depth:
            self._end()

    def on_forward_end(self) -> None:
        """The model's forward is over, complete or not; a refused thread also gets here."""
        self._session.leave(0)

    def enter_layer(self, layer: int, num_rows: int, observer: "Observer") -> None:
        """A layer begins; `observer` knows the forward that contains it."""
        current = self.current
        # A forward that bypassed the embedding layer, or the first one after a failure before the first layer.
        if layer <= current.layer or not current.is_open or self._is_moving:
            self._start_past_the_embedding(layer, num_rows, observer)
        self.current.layer = layer
        self._is_moving = True

    def leave_layer(self, layer: int) -> None:
        """The layer is done, and everything it needed has been moved."""
        self._is_moving = False
        self._parts.memories.note_run(layer)

    def publish_gate(self, ahead: AheadOutput | None = None) -> None:
        """Send a waiting gate output to the matcher."""
        gate = self.current.gate
        if gate is not None:
            self.current.gate = None
            self._parts.matcher.publish_gate(self.current.number, gate, self.current.rows, ahead)

    def recover(self) -> None:
        """After an interrupt or error while experts were being moved, start from an empty cache."""
        if self._is_moving:
            self.current.is_open = self.current.is_published = False
            self._parts.matcher.forget()
            self._parts.memories.reset()
            self._is_moving = False  # only now: an interrupt in here must not leave the cache half empty
            if self._parts.policy.holds_everything:
                with self.moving():
                    self._parts.memories.preload(is_counted=False)

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Surround loads in the calling thread: if they fail, the next use recovers as after a failed layer."""
        self._is_moving = True
        yield
        self._is_moving = False

    def raise_failures(self) -> None:
        """Raise a worker's failure in the caller."""
        self._parts.matcher.check()
        self._parts.memories.check()

    def _start(self, embeddings: torch.Tensor | None, forward: Forward, num_rows: int, is_whole: bool = True) -> None:
        """Start an iteration; is_whole: it will run every layer, not only one that is called by itself."""
        self.recover()
        self._end_publishing()
        self.raise_failures()
        if forward.settled is not None:
            self._settle(*forward.settled)
        self.current = iteration = Iteration(self.current.number + 1, forward, num_rows)
        self._parts.counters.enter_request(forward.request)
        if forward.drafts is not None:
            forward.drafts.num_resets = self._parts.counters.num_resets
        # If every expert is resident there is nothing to prefetch, so do not search; nor for a batch that is all padding.
        is_idle = self._parts.memories.is_all_resident and not self._parts.probe.always_accounts
        iteration.is_published = self._parts.policy.needs_context and iteration.num_counting > 0 and not is_idle
        is_streamed = is_whole and not is_idle and self._is_streamed(iteration)
        if is_streamed:
            with self.moving():
                self._parts.memories.start_iteration(iteration.number, True)
        else:
            self._parts.memories.start_iteration(iteration.number, False)
        if iteration.is_published:
            with self.moving():
                told = iteration.number, embeddings, forward.phase.is_prefill, forward.starts_request, iteration.rows
                iteration.is_published = self._parts.matcher.publish_start(*told, is_streamed)
            self._parts.counters.skipped_iterations += not iteration.is_published

    def _is_streamed(self, iteration: Iteration) -> bool:
        num_rows, least = iteration.num_counting, self._parts.setup.stream_prompts_from
        if least is None or num_rows < least:  # as for every token
            return False
        return self._parts.policy.streams(num_rows, iteration.forward.phase.is_prefill)

    def _settle(self, drafts: "Drafts", num_rejected: int) -> None:
        """Some drafts of an earlier step were rejected: what they alone demanded is no hit or miss of a request."""
        counters, layouts = self._parts.counters, self._parts.memories.memories[0].records.layouts
        if drafts.num_resets != counters.num_resets:
            return  # its demand was counted before the counters were reset
        counters.enter_request(drafts.request)
        num_accesses = num_bytes = 0
        for layer, hits, late, misses in drafts.rejected(num_rejected):
            counters.hits[layer] -= hits
            counters.late[layer] -= late
            counters.misses[layer] -= misses
            num_accesses += hits + late + misses
            num_bytes += misses * layouts[layer].nbytes
        counters.count_drafts(DraftCounts(rejected_accesses=num_accesses, rejected_bytes=num_bytes))
        if drafts.is_counted:
            accepted = drafts.num_drafts - num_rejected
            counters.count_drafts(DraftCounts(num_open_steps=-1, num_drafts=drafts.num_drafts, num_accepted=accepted))

    def _start_past_the_embedding(self, layer: int, num_rows: int, observer: "Observer") -> None:
        before, forward, is_inside = self.current, observer.forward, observer.is_inside
        goes_on = is_inside and before.is_open and not self._is_moving  # a forward that runs its layers again
        before.is_open = False
        self._start(None, replace(forward, starts_request=False) if goes_on else forward, num_rows, is_inside and not layer)
        if goes_on:
            self.current.begin_s = before.begin_s
        self._parts.counters.num_unknown_steps += not is_inside  # a layer called by itself, whose end is never observed

    def _end(self) -> None:
        self._end_publishing()
        self.raise_failures()
        iteration = self.current
        if iteration.is_open:
            iteration.is_open = False
            iteration.require_numbers()
            self.durations.count(iteration.forward, time.perf_counter() - iteration.begin_s)
            self._parts.timeline.add("compute", f"iteration {iteration.number}", iteration.begin_s)

    def _end_publishing(self) -> None:
        if self.current.is_published:
            self.current.is_published = False
            self._parts.matcher.publish_end()
