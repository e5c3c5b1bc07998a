"""A block of recorded iterations, for which a policy may answer all at once."""

from functools import cached_property

import numpy as np

from finemoe.traces import RoutingTrace


class Block:
    """Consecutive iterations of a trace: n iterations with B rows in total. Costly parts are read on first use.

    Args:
        trace: the trace that holds them. rows: the rows of it that they cover.
        starts: [n + 1] first row of each iteration, relative to the block, and the end.
        requests: [n] request of each iteration. is_prefill, starts_request: [n] as in policies.base.Context.
    """

    def __init__(
        self,
        trace: RoutingTrace,
        rows: slice,
        starts: np.ndarray,
        requests: np.ndarray,
        is_prefill: np.ndarray,
        starts_request: np.ndarray,
    ) -> None:
        self._trace, self.rows = trace, rows
        self.starts, self.requests, self.is_prefill, self.starts_request = starts, requests, is_prefill, starts_request

    @property
    def num_iterations(self) -> int:
        """n."""
        return len(self.requests)

    @property
    def num_rows(self) -> np.ndarray:
        """Number of rows of each iteration, [n]."""
        return np.diff(self.starts)

    @cached_property
    def gates(self) -> np.ndarray:
        """Output of every gate for every row, [L, B, J] float32: the expert maps, layer by layer."""
        return np.ascontiguousarray(self._trace.maps(self.rows).transpose(1, 0, 2))

    @cached_property
    def experts(self) -> np.ndarray:
        """The experts that the model selected, [B, L, K] int64."""
        ids: np.ndarray = self._trace.expert_ids[self.rows].astype(np.int64)
        return ids

    @cached_property
    def embeddings(self) -> np.ndarray | None:
        """Semantic embeddings of the rows, [B, h] float32; None if none were recorded."""
        return None if self._trace.embedding_table is None else self._trace.embeddings(self.rows)

    def lookahead(self, stride: int) -> np.ndarray:
        """Output of the router `stride` layers ahead on the residual stream after each layer, [B, L, J]; zero past the end.

        Raises:
            FinemoeError: the trace has no such stride.
        """
        return self._trace.lookahead(self.rows, stride)

    @property
    def at_start(self) -> np.ndarray:
        """The moment at which each iteration starts, [n] (see Predictions)."""
        return 2 * np.arange(self.num_iterations) * self._trace.num_layers

    @property
    def at_first_gate(self) -> np.ndarray:
        """The moment at which the gate of the first layer has fired, [n]; that of layer l follows 2 l moments later."""
        return self.at_start + 1

    @property
    def counts(self) -> np.ndarray:
        """How many rows of each iteration selected each expert, [n, L, J] int64."""
        num_layers, num_experts = self._trace.num_layers, self._trace.num_experts
        owners = np.repeat(np.arange(self.num_iterations), self.num_rows)
        events = owners[:, None] * num_layers + np.arange(num_layers)[None]
        keys = (events[:, :, None] * num_experts + self.experts).reshape(-1)
        shape = (self.num_iterations, num_layers, num_experts)
        counts: np.ndarray = np.bincount(keys, minlength=int(np.prod(shape))).reshape(shape)
        return counts

    @property
    def demanded(self) -> np.ndarray:
        """The experts that each layer of each iteration demands, [n, L, J] bool."""
        return self.counts > 0

    def told(self, distance: int) -> np.ndarray:
        """The moment at which each layer of each iteration is predicted, [n, L], by a policy that looks `distance` layers ahead;
        the first layers are predicted when the iteration starts."""
        layers = np.arange(self._trace.num_layers)
        moments: np.ndarray = self.at_start[:, None] + np.where(layers < distance, 0, 2 * (layers - distance) + 1)[None]
        return moments
