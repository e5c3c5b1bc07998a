"""The matcher: takes published contexts, lets the policy search, and posts the prefetches (section 4.3, Fig. 7).

Inference only appends to a queue; search and store updates happen in the matcher's thread, in the order published. When it falls
several iterations behind, whole iterations are left out (and counted) rather than delaying anyone.
"""

import queue
import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch

from finemoe.errors import EngineError
from finemoe.maps import expert_map
from finemoe.policies.base import Context, Policy, Prefetch

_MOST_ITERATIONS_BEHIND = 4
Post = Callable[[int, Sequence[Prefetch]], None]
Event = Callable[[], None]


class Matcher:
    """Feeds a policy with what inference publishes.

    Args:
        policy: whose state only the matcher's thread touches.
        post: called with (iteration, prefetches).
        asynchronous: search in a thread of its own; otherwise inside `publish_*`.
    """

    def __init__(self, policy: Policy, post: Post, asynchronous: bool) -> None:
        self._policy, self._post = policy, post
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._published = self._finished = 0  # iterations
        self._accepting = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="finemoe-matcher", daemon=True) if asynchronous else None
        if self._thread:
            self._thread.start()

    def publish_start(self, iteration: int, embeddings: torch.Tensor | None, is_prefill: bool, rows: torch.Tensor | None) -> bool:
        """A new iteration begins.

        Args:
            embeddings: [rows, h]; rows: indices of the rows that count (padding left out), or None for all.
        Returns:
            False if the matcher is too far behind and will not see this iteration.
        """
        self._accepting = self._published - self._finished < _MOST_ITERATIONS_BEHIND
        if self._accepting:
            self._published += 1
            self._dispatch(lambda: self._start(iteration, embeddings, is_prefill, rows))
        return self._accepting

    def publish_gate(
        self, iteration: int, layer: int, gate_output: torch.Tensor, experts: torch.Tensor, rows: torch.Tensor | None
    ) -> None:
        """A gate has spoken: its logits or probabilities [rows, J] and the selected experts [rows, K]."""
        if self._accepting:
            self._dispatch(lambda: self._gate(iteration, layer, gate_output, experts, rows))

    def publish_end(self) -> None:
        """The last layer has run."""
        if self._accepting:
            self._dispatch(self._end)

    def check(self) -> None:
        """Raise what the matcher failed with, in the caller."""
        if self._error is not None:
            raise EngineError(f"the matcher failed: {self._error}; the engine cannot go on, close it") from self._error

    def flush(self) -> None:
        """Wait until everything published so far has been handled."""
        if self._thread and self._error is None:
            handled = threading.Event()
            self._events.put(handled.set)
            while not handled.wait(timeout=0.05):
                if not self._thread.is_alive():
                    break

    def close(self) -> None:
        """Stop the thread after what is queued, and wait for it."""
        if self._thread:
            self._events.put(None)
            self._thread.join()

    def _dispatch(self, event: Event) -> None:
        if self._thread:
            self._events.put(event)
        else:
            event()

    def _work(self) -> None:
        try:
            while (event := self._events.get()) is not None:
                event()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the caller must hear of it
            self._error = error

    def _start(self, iteration: int, embeddings: torch.Tensor | None, is_prefill: bool, rows: torch.Tensor | None) -> None:
        vectors = None if embeddings is None else _to_numpy(embeddings, rows)
        self._post(iteration, self._policy.start_iteration(Context(vectors, is_prefill)))

    def _gate(
        self, iteration: int, layer: int, gate_output: torch.Tensor, experts: torch.Tensor, rows: torch.Tensor | None
    ) -> None:
        probs = distribution_of(_to_numpy(gate_output, rows), layer)
        self._post(iteration, self._policy.on_gate(layer, probs, experts.detach().cpu().numpy()))

    def _end(self) -> None:
        self._policy.end_iteration()
        self._finished += 1


def distribution_of(gate_output: np.ndarray, layer: int) -> np.ndarray:
    """The gate's softmax [B, J], whether the router hands out logits or probabilities.

    Raises:
        EngineError: the router emitted NaN.
    """
    is_distribution = (gate_output >= 0).all() and np.allclose(gate_output.sum(axis=-1), 1.0, atol=1e-3)
    probs = gate_output if is_distribution else expert_map.from_logits(gate_output)
    expert_map.require_distribution(probs, layer)
    return probs


def _to_numpy(values: torch.Tensor, rows: torch.Tensor | None) -> np.ndarray:
    values = values.detach().reshape(-1, values.shape[-1])
    chosen = values if rows is None else values[rows.to(values.device)]
    return chosen.float().cpu().numpy()
