"""The arrays and metadata of a routing trace."""

from dataclasses import dataclass, fields

import numpy as np

from finemoe.files import release_pages

ROW_ARRAYS = (
    "expert_ids",
    "expert_probs",
    "step",
    "phase",
    "probs",
    "tokens",
    "embedding_index",
    "lookahead_ids",
    "lookahead_probs",
)


@dataclass(frozen=True, eq=False)
class TraceArrays:
    """Routing of R requests, T tokens, L MoE layers, K of J experts.

    Attributes:
        expert_ids: [T, L, K] unsigned ints, the activated set, by descending gate probability.
        expert_probs: [T, L, K] float16, the gate's distribution over all J at those experts.
        offsets: [R + 1] int64, first row of each request and the end.
        num_experts: J.
        step: [T] int32, iteration within the request (0 is its prefill).
        phase: [T] uint8, PREFILL or DECODE.
        probs: [T, L, J] float16, the full distribution (the rows' expert maps), or None for top-k traces.
        tokens: [T] int32, the input token, or None.
        embedding_table: [U, h] float16, distinct semantic embeddings, or None.
        embedding_index: [T] int32, index of each row's embedding in the table, or None.
        lookahead_strides: S numbers of layers, ascending, at least 1: how far ahead routers were applied (DESIGN 2).
        lookahead_ids: [T, S, L, M] unsigned ints, or None. Entry [t, i, l] holds the M most probable experts, in descending
            order, that the norm and gate of layer l + strides[i] select for row t's residual stream after layer l; zero past
            the last layer.
        lookahead_probs: [T, S, L, M] float16, that gate's distribution over all J at those experts, or None.
        request_ids: a name (or number) for each request, or empty.
        splits: "history" or "served" for each request, or empty.
        model: identity of the model that routed.
        has_weights: False if only ids were recorded: all `expert_probs` are then equal, and the router's order of preference
            among the K experts is unknown.
        expert_bytes: [L] size in bytes of one expert of each layer, as the recorder stated it, or empty.
    """

    expert_ids: np.ndarray
    expert_probs: np.ndarray
    offsets: np.ndarray
    num_experts: int
    step: np.ndarray
    phase: np.ndarray
    probs: np.ndarray | None = None
    tokens: np.ndarray | None = None
    embedding_table: np.ndarray | None = None
    embedding_index: np.ndarray | None = None
    lookahead_strides: tuple[int, ...] = ()
    lookahead_ids: np.ndarray | None = None
    lookahead_probs: np.ndarray | None = None
    request_ids: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    model: str = ""
    has_weights: bool = True
    expert_bytes: tuple[int, ...] = ()

    @property
    def num_rows(self) -> int:
        return len(self.expert_ids)

    @property
    def num_layers(self) -> int:
        return self.expert_ids.shape[1]

    @property
    def top_k(self) -> int:
        return self.expert_ids.shape[2]

    @property
    def num_requests(self) -> int:
        return len(self.offsets) - 1

    def release_pages(self) -> None:
        """Free the memory that reading a mapped trace has used; does nothing for a trace held entirely in memory."""
        release_pages(array for f in fields(self) if isinstance(array := getattr(self, f.name), np.ndarray))
