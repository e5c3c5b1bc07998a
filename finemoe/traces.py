"""Recorded routing: which experts every token of every request activated, and with which gate probabilities.

One row is one token; the rows of a request are contiguous. Rows of one request with equal `step` form one iteration (DESIGN 4).
Probabilities and embeddings are stored in half precision; each distinct embedding is stored once.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.files import load_arrays, map_arrays, save_arrays
from finemoe.plain import names, narrowed, plain_array, text, whole_number, whole_numbers
from finemoe.trace_arrays import ROW_ARRAYS, TraceArrays
from finemoe.trace_checks import check_arrays, check_ids, check_offsets, check_values

PREFILL = 0
DECODE = 1
_INTEGERS = {"offsets": np.int64, "step": np.int32, "phase": np.uint8, "tokens": np.int32, "embedding_index": np.int32}
_REQUIRED = ("expert_ids", "expert_probs", "offsets", "step", "phase")
_KIND = "routing-trace"
_VERSION = 2


@dataclass(frozen=True, eq=False)
class RoutingTrace(TraceArrays):
    """A routing trace with validated values, and methods to save, load and select (`TraceArrays` documents the fields).

    Arrays may be given as any sequences of numbers; numbers and names may be NumPy's. A trace that is accepted can be saved.

    Raises:
        FinemoeError: values do not fit together, cannot come from a router, or cannot be saved; the message names the argument
            and, for an array, the row.
    """

    def __post_init__(self) -> None:
        self._settle()
        check_values(self)

    def _settle(self) -> None:
        for name, value in _plain(self).items():
            object.__setattr__(self, name, value)
        check_arrays(self)

    def _part(self, **changes: Any) -> "RoutingTrace":
        """A copy with some fields replaced by rows of this trace, whose values were checked when it was created."""
        part = object.__new__(RoutingTrace)
        for name, value in ({field.name: getattr(self, field.name) for field in fields(self)} | changes).items():
            object.__setattr__(part, name, value)
        part._settle()
        return part

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
        """Create a trace of which only the activated experts are known (public top-k traces).

        Args:
            expert_ids: [T, L, K] ints. expert_probs: [T, L, K], summing to about 1 over K.
            offsets: [R + 1], first row of each request and the end. num_experts: J.
            step, phase: [T]; if both are omitted, every row is one decode step.
            details: other fields of `TraceArrays`.
        Raises:
            FinemoeError: the arrays do not fit together, or have values that a router cannot produce; the message names the row.
        """
        num_experts = whole_number("num_experts", num_experts)
        expert_ids = plain_array("expert_ids", expert_ids)
        check_ids(expert_ids)
        offsets = narrowed(plain_array("offsets", offsets), np.int64)
        num_rows = len(expert_ids)
        check_offsets(offsets, num_rows)
        if step is None:
            step = np.arange(num_rows) - np.repeat(offsets[:-1], np.diff(offsets))
        if phase is None:
            phase = np.full(num_rows, DECODE)
        return cls(
            expert_ids=narrowed(expert_ids, np.uint8 if num_experts <= 256 else np.uint16),
            expert_probs=_halved(_required("expert_probs", expert_probs)),
            offsets=offsets,
            num_experts=num_experts,
            step=narrowed(plain_array("step", step), np.int32),
            phase=narrowed(plain_array("phase", phase), np.uint8),
            **details,
        )

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
        """Expert maps of the rows, [n, L, J] float32 (section 4.1); for top-k traces, the K known entries, renormalised."""
        if self.probs is not None:
            return self.probs[rows].astype(np.float32, subok=False)
        known = self.expert_probs[rows].astype(np.float32)
        return _in_place(self.expert_ids[rows], known / known.sum(axis=-1, keepdims=True), self.num_experts)

    def lookahead(self, rows: slice | np.ndarray, stride: int) -> np.ndarray:
        """Output of the routers `stride` layers ahead for the rows: [n, L, J] float32, entry l predicts layer l + stride.

        Experts outside the M recorded ones are 0, and so are the last `stride` layers, which have nothing ahead.

        Raises:
            FinemoeError: that stride was not recorded.
        """
        if self.lookahead_ids is None or self.lookahead_probs is None or stride not in self.lookahead_strides:
            recorded = ", ".join(map(str, self.lookahead_strides)) or "none"
            raise FinemoeError(
                f"this trace has no lookahead at stride {stride} (recorded strides: {recorded}); "
                f"record it with lookahead=({stride},)"
            )
        index = self.lookahead_strides.index(stride)
        return _in_place(self.lookahead_ids[rows, index], self.lookahead_probs[rows, index], self.num_experts)

    def embeddings(self, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Semantic embeddings of the rows, [n, h] float32.

        Raises:
            FinemoeError: the trace has none.
        """
        if self.embedding_table is None or self.embedding_index is None:
            raise FinemoeError("this trace has no semantic embeddings; record one that has them with finemoe.record")
        return self.embedding_table[self.embedding_index[rows]].astype(np.float32)

    def select(self, requests: Sequence[int] | np.ndarray) -> "RoutingTrace":
        """The trace of some of the requests, by number, in the given order.

        Raises:
            FinemoeError: there is no such request.
        """
        requests = _numbers("request", requests, self.num_requests)
        pieces = [np.arange(self.offsets[request], self.offsets[request + 1]) for request in requests]
        offsets = np.cumsum([0, *(len(rows) for rows in pieces)], dtype=np.int64)
        return self.arranged(np.concatenate([np.zeros(0, dtype=np.int64), *pieces]), offsets)._part(
            request_ids=tuple(self.request_ids[r] for r in requests) if self.request_ids else (),
            splits=tuple(self.splits[r] for r in requests) if self.splits else (),
        )

    def arranged(
        self, rows: np.ndarray, offsets: np.ndarray, step: np.ndarray | None = None, phase: np.ndarray | None = None
    ) -> "RoutingTrace":
        """A trace of selected rows, in the given order and with repetitions, grouped into new requests without names.

        Args:
            rows: [T'] row numbers. offsets: [R' + 1] first row of each new request and the end.
            step, phase: [T'] replacements for the rows' values.
        Raises:
            FinemoeError: there is no such row, or the rows do not form requests.
        """
        rows = _numbers("row", rows, self.num_rows)
        chosen: dict[str, Any] = {name: None if (a := getattr(self, name)) is None else a[rows] for name in ROW_ARRAYS}
        chosen |= {name: given for name, given in (("step", step), ("phase", phase)) if given is not None}
        return self._part(**chosen, offsets=offsets, request_ids=(), splits=())

    def decode(self) -> "RoutingTrace":
        """The trace without prefills."""
        is_decode = self.phase == DECODE
        rows_before = np.concatenate([[0], np.cumsum(is_decode)]).astype(np.int64)
        arrays = {name: getattr(self, name) for name in ROW_ARRAYS}
        chosen: dict[str, Any] = {name: None if array is None else array[is_decode] for name, array in arrays.items()}
        return self._part(offsets=rows_before[self.offsets], **chosen)

    def with_strides(self, strides: tuple[int, ...]) -> "RoutingTrace":
        """The trace with lookahead at these strides only; lookahead takes most of a trace's memory.

        Raises:
            FinemoeError: one of them was not recorded.
        """
        if not strides or self.lookahead_ids is None or self.lookahead_probs is None:
            return self._part(lookahead_strides=(), lookahead_ids=None, lookahead_probs=None)
        if missing := set(strides) - set(self.lookahead_strides):
            raise FinemoeError(f"this trace has no lookahead at stride {min(missing)}")
        places = [self.lookahead_strides.index(stride) for stride in strides]
        ids, probs = (array[:, places] for array in (self.lookahead_ids, self.lookahead_probs))
        return self._part(lookahead_strides=strides, lookahead_ids=ids, lookahead_probs=probs)

    def split(self, name: str) -> "RoutingTrace":
        """The requests of one split, "history" or "served".

        Raises:
            FinemoeError: the trace has no requests in that split.
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
            "lookahead_strides": list(self.lookahead_strides),
            "request_ids": list(self.request_ids),
            "splits": list(self.splits),
            "model": self.model,
        } | _rarely(self)
        save_arrays(path, _KIND, _VERSION, arrays, meta)

    @classmethod
    def load(cls, path: str | Path, mapped: bool = False) -> "RoutingTrace":
        """Read a trace that `save` wrote.

        Args:
            mapped: map the arrays read-only instead of reading them, for traces larger than memory.
        Raises:
            FinemoeError: the file is missing, truncated, damaged or of another format.
        """
        arrays, meta = (map_arrays if mapped else load_arrays)(path, _KIND, _VERSION)
        return cls(
            **arrays,
            num_experts=meta["num_experts"],
            lookahead_strides=tuple(meta["lookahead_strides"]),
            request_ids=tuple(meta["request_ids"]),
            splits=tuple(meta["splits"]),
            model=meta["model"],
            has_weights=meta.get("has_weights", True),
            expert_bytes=tuple(meta.get("expert_bytes", ())),
        )


def _rarely(trace: RoutingTrace) -> dict[str, Any]:
    """Metadata that few traces have; it is written only for those."""
    stated: dict[str, Any] = {} if trace.has_weights else {"has_weights": False}
    return stated | ({"expert_bytes": list(trace.expert_bytes)} if trace.expert_bytes else {})


def _plain(trace: RoutingTrace) -> dict[str, Any]:
    """The trace's fields in a form that can be saved."""
    found: dict[str, Any] = {
        "num_experts": whole_number("num_experts", trace.num_experts),
        "lookahead_strides": whole_numbers("lookahead_strides", trace.lookahead_strides),
        "request_ids": names("request_ids", trace.request_ids),
        "splits": names("splits", trace.splits),
        "model": text("model", trace.model),
        "has_weights": bool(trace.has_weights),
        "expert_bytes": whole_numbers("expert_bytes", trace.expert_bytes),
    }
    for name in (*ROW_ARRAYS, "offsets", "embedding_table"):
        value = getattr(trace, name)
        if name in _REQUIRED:
            value = _required(name, value)
        elif value is not None:
            value = plain_array(name, value)
        if name in _INTEGERS and value is not None and value.dtype.kind in "iu":
            value = narrowed(value, _INTEGERS[name])
        found[name] = value
    return found


def _required(name: str, value: Any) -> np.ndarray:
    if name == "expert_probs" and value is None:
        raise FinemoeError(
            "expert_probs is None; if only the experts are known, pass has_weights=False and equal probabilities: "
            "np.full(expert_ids.shape, 1 / K)"
        )
    return plain_array(name, value)


def _halved(probs: np.ndarray) -> np.ndarray:
    """Convert to half precision; overflows and booleans are left for the checks to report."""
    with np.errstate(over="ignore"):
        return probs if probs.dtype.kind == "b" else probs.astype(np.float16)


def _numbers(of_what: str, wanted: Any, count: int) -> np.ndarray:
    """Check numbers of requests or rows, [n], each in 0..count-1."""
    wanted = list(wanted) if not hasattr(wanted, "__len__") and hasattr(wanted, "__iter__") else wanted
    numbers = plain_array(f"{of_what}s", wanted)
    numbers = numbers if numbers.size else np.zeros(numbers.shape, dtype=np.int64)
    if numbers.dtype.kind not in "iu" or numbers.ndim != 1:
        raise FinemoeError(f"{of_what}s are selected by their numbers; for a mask write np.flatnonzero(mask)")
    foreign = numbers[(numbers < 0) | (numbers >= count)]
    if len(foreign):
        raise FinemoeError(f"there is no {of_what} {foreign[0]}; the trace has {count}, counted from 0")
    return numbers


def _in_place(ids: np.ndarray, probs: np.ndarray, num_experts: int) -> np.ndarray:
    """Scatter the probabilities of some experts, ids and probs [n, L, K], into distributions over all, [n, L, J] float32."""
    distributions = np.zeros((*ids.shape[:2], num_experts), dtype=np.float32)
    np.put_along_axis(distributions, ids.astype(np.int64), probs, axis=-1)
    return distributions
