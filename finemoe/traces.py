"""Recorded routing: which experts every token of every request activated, and with what gate probabilities.

One row is one token; requests lie back to back. Rows of one request with equal `step` form one iteration (DESIGN 4).
Probabilities and embeddings are kept in half precision; the embedding is stored once per distinct vector.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.files import load_arrays, save_arrays

PREFILL = 0
DECODE = 1
_KIND = "routing-trace"
_VERSION = 1


@dataclass(frozen=True, eq=False)
class RoutingTrace:
    """Routing of R requests, T tokens, L MoE layers, K of J experts.

    Attributes:
        expert_ids: [T, L, K] unsigned ints, the activated set, by descending gate probability.
        expert_probs: [T, L, K] float16, the gate's softmax over all J at those experts.
        offsets: [R + 1] int64, first row of each request and the end.
        num_experts: J.
        step: [T] int32, iteration of the request (0 is its prefill).
        phase: [T] uint8, PREFILL or DECODE.
        probs: [T, L, J] float16, the whole softmax (the rows' expert maps), or None for top-k traces.
        tokens: [T] int32, the token fed in, or None.
        embedding_table: [U, h] float16, distinct semantic embeddings, or None.
        embedding_index: [T] int32, each row's embedding in the table, or None.
        request_ids: a name for each request.
        splits: "history" or "served" for each request, or empty.
        model: identity of the model that routed.
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
    request_ids: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    model: str = ""

    def __post_init__(self) -> None:
        _check_shapes(self)
        _check_values(self)

    @classmethod
    def from_topk(
        cls,
        expert_ids: np.ndarray,
        expert_probs: np.ndarray,
        offsets: Sequence[int] | np.ndarray,
        num_experts: int,
        step: np.ndarray | None = None,
        phase: np.ndarray | None = None,
        **details: Any,
    ) -> "RoutingTrace":
        """A trace of which only the activated experts are known (public top-k traces).

        Args:
            expert_ids: [T, L, K] ints. expert_probs: [T, L, K], summing to about 1 over K.
            offsets: [R + 1]. Without `step` and `phase`, every row is one decode step.
        """
        offsets = np.asarray(offsets, dtype=np.int64)
        num_rows = len(expert_ids)
        if step is None:
            step = np.arange(num_rows) - np.repeat(offsets[:-1], np.diff(offsets)) if _ordered(offsets, num_rows) else offsets
        if phase is None:
            phase = np.full(num_rows, DECODE)
        return cls(
            expert_ids=_smallest_ids(np.asarray(expert_ids), num_experts),
            expert_probs=np.asarray(expert_probs, dtype=np.float16),
            offsets=offsets,
            num_experts=num_experts,
            step=np.asarray(step, dtype=np.int32),
            phase=np.asarray(phase, dtype=np.uint8),
            **details,
        )

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

    def rows_of(self, request: int) -> slice:
        """The rows of one request."""
        return slice(int(self.offsets[request]), int(self.offsets[request + 1]))

    def iterations(self) -> Iterator[tuple[int, int, slice]]:
        """Every iteration in order, as (request, step, rows)."""
        for request in range(self.num_requests):
            rows = self.rows_of(request)
            steps = self.step[rows]
            bounds = [*np.flatnonzero(np.diff(steps, prepend=steps[:1] - 1)).tolist(), len(steps)]
            for begin, end in itertools.pairwise(bounds):
                yield request, int(steps[begin]), slice(rows.start + begin, rows.start + end)

    def maps(self, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Expert maps of the rows, [n, L, J] float32 (4.1); from top-k data the K known entries, renormalised."""
        if self.probs is not None:
            return self.probs[rows].astype(np.float32)
        ids = self.expert_ids[rows].astype(np.int64)
        known = self.expert_probs[rows].astype(np.float32)
        maps = np.zeros((*ids.shape[:2], self.num_experts), dtype=np.float32)
        np.put_along_axis(maps, ids, known / known.sum(axis=-1, keepdims=True), axis=-1)
        return maps

    def embeddings(self, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Semantic embeddings of the rows, [n, h] float32.

        Raises:
            FinemoeError: the trace holds none.
        """
        if self.embedding_table is None or self.embedding_index is None:
            raise FinemoeError("this trace holds no semantic embeddings; record it with finemoe.record to have them")
        return self.embedding_table[self.embedding_index[rows]].astype(np.float32)

    def select(self, requests: Sequence[int] | np.ndarray) -> "RoutingTrace":
        """The trace of some of the requests, in the order given."""
        requests = [int(request) for request in requests]
        pieces = [np.arange(self.offsets[r], self.offsets[r + 1]) for r in requests]
        rows = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)
        of_rows: dict[str, Any] = {
            name: None if getattr(self, name) is None else getattr(self, name)[rows]
            for name in ("expert_ids", "expert_probs", "step", "phase", "probs", "tokens", "embedding_index")
        }
        return RoutingTrace(
            **of_rows,
            offsets=np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int64),
            num_experts=self.num_experts,
            embedding_table=self.embedding_table,
            request_ids=tuple(self.request_ids[r] for r in requests) if self.request_ids else (),
            splits=tuple(self.splits[r] for r in requests) if self.splits else (),
            model=self.model,
        )

    def split(self, name: str) -> "RoutingTrace":
        """The requests of one split, "history" or "served".

        Raises:
            FinemoeError: no request carries that split.
        """
        requests = [index for index, split in enumerate(self.splits) if split == name]
        if not requests:
            raise FinemoeError(f"no request of this trace is in split {name!r}; its splits are {sorted(set(self.splits))}")
        return self.select(requests)

    def save(self, path: str | Path) -> None:
        """Write the trace to one file, atomically."""
        arrays = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), np.ndarray)}
        meta = {
            "num_experts": self.num_experts,
            "request_ids": list(self.request_ids),
            "splits": list(self.splits),
            "model": self.model,
        }
        save_arrays(path, _KIND, _VERSION, arrays, meta)

    @classmethod
    def load(cls, path: str | Path) -> "RoutingTrace":
        """Read a trace that `save` wrote.

        Raises:
            FinemoeError: the file is missing, truncated, damaged or of another format.
        """
        arrays, meta = load_arrays(path, _KIND, _VERSION)
        return cls(
            **arrays,
            num_experts=meta["num_experts"],
            request_ids=tuple(meta["request_ids"]),
            splits=tuple(meta["splits"]),
            model=meta["model"],
        )


def _smallest_ids(ids: np.ndarray, num_experts: int) -> np.ndarray:
    if ids.size and (ids.min() < 0 or ids.max() >= num_experts):
        raise FinemoeError(
            f"expert_ids hold {ids.min()}..{ids.max()}, outside 0..{num_experts - 1}; row {_bad_row(ids, num_experts)}"
        )
    return ids.astype(np.uint8 if num_experts <= 256 else np.uint16)


def _bad_row(ids: np.ndarray, num_experts: int) -> int:
    return int(np.argmax(((ids < 0) | (ids >= num_experts)).reshape(len(ids), -1).any(axis=1)))


def _ordered(offsets: np.ndarray, num_rows: int) -> bool:
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != num_rows or (np.diff(offsets) < 0).any():
        raise FinemoeError(f"offsets must rise from 0 to the number of rows, {num_rows}")
    return True


def _check_shapes(trace: RoutingTrace) -> None:
    ids = trace.expert_ids
    if ids.ndim != 3 or trace.expert_probs.shape != ids.shape:
        raise FinemoeError(f"expert_ids and expert_probs must both be [T, L, K], not {ids.shape} and {trace.expert_probs.shape}")
    _ordered(trace.offsets, len(ids))
    per_row = {name: getattr(trace, name) for name in ("step", "phase", "probs", "tokens", "embedding_index")}
    for name, array in per_row.items():
        if array is not None and len(array) != len(ids):
            raise FinemoeError(f"{name} has {len(array)} rows, expert_ids {len(ids)}")
    if trace.probs is not None and trace.probs.shape != (*ids.shape[:2], trace.num_experts):
        raise FinemoeError(f"probs must be [T, L, J] = {(*ids.shape[:2], trace.num_experts)}, not {trace.probs.shape}")
    for name in ("request_ids", "splits"):
        if getattr(trace, name) and len(getattr(trace, name)) != trace.num_requests:
            raise FinemoeError(f"{name} has {len(getattr(trace, name))} entries for {trace.num_requests} requests")


def _check_values(trace: RoutingTrace) -> None:
    _smallest_ids(trace.expert_ids, trace.num_experts)
    bad = ~(trace.expert_probs >= 0).all(axis=(1, 2))  # also true for NaN
    if bad.any():
        raise FinemoeError(f"expert_probs are negative or NaN in row {int(np.argmax(bad))}")
    if trace.probs is not None and len(trace.probs):
        sums = trace.probs.sum(axis=-1, dtype=np.float32)
        wrong = ~(np.abs(sums - 1) < 0.02).all(axis=1)
        if wrong.any():
            raise FinemoeError(f"probs do not sum to 1 over the experts in row {int(np.argmax(wrong))}")
