"""Validation of a RoutingTrace; error messages name the row at fault.

Values are checked in blocks of rows, which also works for traces larger than memory.
"""

import math
from collections.abc import Iterator

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.trace_arrays import ROW_ARRAYS, TraceArrays

_INTEGERS = ("expert_ids", "offsets", "step", "phase", "tokens", "embedding_index", "lookahead_ids")
_NUMBERS = ("expert_probs", "probs", "embedding_table", "lookahead_probs")
_BLOCK_VALUES = 1 << 22
_MAP_TOLERANCE = 0.02
_TOP_K_TOLERANCE = 0.05  # wider, because publishers round each of the K, often to bfloat16


def check_arrays(trace: TraceArrays) -> None:
    """Refuse a trace whose arrays do not fit together, or whose rows do not form requests.

    Raises:
        FinemoeError: one line that names the array, the row and the value.
    """
    _check_strides(trace)
    _check_shapes(trace)
    check_offsets(trace.offsets, trace.num_rows)
    _check_requests(trace)
    _check_steps(trace)
    _check_embeddings(trace)


def check_values(trace: TraceArrays) -> None:
    """Refuse a trace with values that a router cannot produce.

    Raises:
        FinemoeError: one line that names the array, the row and the value.
    """
    for rows in _blocks(trace, trace.num_rows, _values_per_row(trace)):
        _check_routing(trace, rows)
        _check_lookahead(trace, rows)


def check_ids(expert_ids: np.ndarray) -> None:
    """Refuse expert ids that are not of shape [T, L, K].

    Raises:
        FinemoeError: states their shape.
    """
    if expert_ids.ndim != 3:
        raise FinemoeError(f"expert_ids must be [T, L, K], not of shape {expert_ids.shape}")


def check_offsets(offsets: np.ndarray, num_rows: int) -> None:
    """Refuse offsets [R + 1] that do not rise from 0 to the number of rows.

    Raises:
        FinemoeError: names the request where they decrease.
    """
    if offsets.ndim != 1 or not len(offsets):
        raise FinemoeError(f"offsets must be [R + 1], the first row of each request and the end, not of shape {offsets.shape}")
    if offsets.dtype.kind not in "iu":
        raise FinemoeError(f"offsets must be integers, not {offsets.dtype}")
    if offsets[0] != 0 or offsets[-1] != num_rows:
        raise FinemoeError(
            f"offsets must rise from 0 to the number of rows, {num_rows}, but go from {offsets[0]} to {offsets[-1]}"
        )
    falls = np.flatnonzero(offsets[1:] < offsets[:-1])
    if len(falls):
        begin, end = offsets[falls[0] : falls[0] + 2]
        raise FinemoeError(f"offsets must rise, but request {falls[0]} begins at row {begin} and ends at row {end}")


def _check_strides(trace: TraceArrays) -> None:
    strides = trace.lookahead_strides
    if any(stride < 1 for stride in strides) or list(strides) != sorted(set(strides)):
        raise FinemoeError(f"lookahead_strides must ascend from 1 or more, not {strides}")
    if len({bool(strides), trace.lookahead_ids is not None, trace.lookahead_probs is not None}) > 1:
        raise FinemoeError("lookahead_strides, lookahead_ids and lookahead_probs must come together or not at all")


def _check_shapes(trace: TraceArrays) -> None:
    check_ids(trace.expert_ids)
    for name, shape in _expected_shapes(trace).items():
        array = getattr(trace, name)
        if array is not None and array.shape != shape:
            raise FinemoeError(f"{name} must be of shape {shape} for expert_ids {trace.expert_ids.shape}, not {array.shape}")
    for name in _INTEGERS:
        array = getattr(trace, name)
        if array is not None and array.dtype.kind not in "iu":
            raise FinemoeError(f"{name} must be integers, not {array.dtype}")
    for name in _NUMBERS:
        array = getattr(trace, name)
        if array is not None and array.dtype.kind == "b":
            raise FinemoeError(f"{name} must be numbers, not {array.dtype}")
    if trace.embedding_table is not None and trace.embedding_table.ndim != 2:
        raise FinemoeError(f"embedding_table must be [U, h], not of shape {trace.embedding_table.shape}")


def _expected_shapes(trace: TraceArrays) -> dict[str, tuple[int, ...]]:
    num_rows, num_layers, _ = trace.expert_ids.shape
    num_ahead = 0 if trace.lookahead_ids is None or not trace.lookahead_ids.ndim else trace.lookahead_ids.shape[-1]
    ahead = (num_rows, len(trace.lookahead_strides), num_layers, num_ahead)
    return {
        "expert_probs": trace.expert_ids.shape,
        "step": (num_rows,),
        "phase": (num_rows,),
        "probs": (num_rows, num_layers, trace.num_experts),
        "tokens": (num_rows,),
        "embedding_index": (num_rows,),
        "lookahead_ids": ahead,
        "lookahead_probs": ahead,
    }


def _check_requests(trace: TraceArrays) -> None:
    for name in ("request_ids", "splits"):
        if getattr(trace, name) and len(getattr(trace, name)) != trace.num_requests:
            raise FinemoeError(f"{name} has {len(getattr(trace, name))} entries for {trace.num_requests} requests")
    if trace.expert_bytes and (len(trace.expert_bytes) != trace.num_layers or min(trace.expert_bytes) < 1):
        raise FinemoeError(
            f"expert_bytes are {list(trace.expert_bytes)}, not one positive size for each of {trace.num_layers} layers"
        )


def _check_steps(trace: TraceArrays) -> None:
    step, offsets = trace.step, trace.offsets
    falls = np.zeros(len(step), dtype=np.bool_)
    falls[1:] = step[1:] < step[:-1]
    falls[offsets[:-1][offsets[:-1] < len(step)]] = False
    _refuse(falls, step, "step falls to {} within its request")
    _refuse(step < 0, step, "step is {}")
    _refuse((trace.phase != 0) & (trace.phase != 1), trace.phase, "phase is {}, neither 0 (prefill) nor 1 (decode)")
    follows = np.ones(len(step), dtype=np.bool_)  # whether the row before belongs to the same request
    follows[offsets[:-1][offsets[:-1] < len(step)]] = False
    changes, earlier = np.zeros(len(step), dtype=np.bool_), trace.phase[:-1].astype(int)
    changes[1:] = (trace.phase[1:] != earlier) & (step[1:] == step[:-1])
    _refuse(changes & follows, step, "step {} is of two phases")
    returns = np.zeros(len(step), dtype=np.bool_)
    returns[1:] = trace.phase[1:] < earlier
    _refuse(returns & follows, step, "step {} is a prefill after a decode step of its request")
    if trace.tokens is not None:
        _refuse(trace.tokens < 0, trace.tokens, "tokens hold {}")


def _check_embeddings(trace: TraceArrays) -> None:
    table, index = trace.embedding_table, trace.embedding_index
    if (table is None) != (index is None):
        raise FinemoeError("embedding_table and embedding_index must come together or not at all")
    if table is None or index is None:
        return
    _refuse((index < 0) | (index >= len(table)), index, f"embedding_index is {{}}, outside the table's 0..{len(table) - 1},")
    for rows in _blocks(trace, len(table), table.shape[1]):
        with np.errstate(over="ignore"):
            is_finite = np.isfinite(table[rows].astype(np.float32))  # in the type that `RoutingTrace.embeddings` returns
        _refuse(~is_finite, table[rows], "embedding_table holds {}", rows.start, ("entry",))


def _values_per_row(trace: TraceArrays) -> int:
    arrays = [getattr(trace, name) for name in ROW_ARRAYS]
    return max(math.prod(array.shape[1:]) for array in arrays if array is not None)


def _blocks(trace: TraceArrays, num_rows: int, values_per_row: int) -> Iterator[slice]:
    """Slices of about _BLOCK_VALUES values; the memory of a mapped block is freed before the next."""
    block_rows = max(1, _BLOCK_VALUES // max(1, values_per_row))
    for begin in range(0, num_rows, block_rows):
        yield slice(begin, min(begin + block_rows, num_rows))
        trace.release_pages()


def _check_routing(trace: TraceArrays, rows: slice) -> None:
    chosen = trace.expert_probs[rows]
    _check_experts("expert_ids", trace.expert_ids[rows], trace.num_experts, rows.start)
    _check_probs("expert_probs", chosen, rows.start)
    if trace.probs is None:
        _check_sums("expert_probs sum to {:.3f} over the K experts, not 1,", chosen, _TOP_K_TOLERANCE, rows.start)
        return
    _check_probs("probs", trace.probs[rows], rows.start)
    _check_sums("probs do not sum to 1 over the experts but to {:.3f}", trace.probs[rows], _MAP_TOLERANCE, rows.start)


def _check_lookahead(trace: TraceArrays, rows: slice) -> None:
    if trace.lookahead_ids is None or trace.lookahead_probs is None:
        return
    for index, stride in enumerate(trace.lookahead_strides):
        ids, probs = trace.lookahead_ids[rows, index], trace.lookahead_probs[rows, index]
        num_sources = max(0, trace.num_layers - stride)
        past_the_end = (ids != 0) | (probs != 0)
        past_the_end[:, :num_sources] = False
        _refuse(past_the_end, probs, f"lookahead at stride {stride} is not zero where it looks past the last layer,", rows.start)
        _check_experts(f"lookahead_ids at stride {stride}", ids[:, :num_sources], trace.num_experts, rows.start)
        _check_lookahead_probs(f"lookahead_probs at stride {stride}", probs, rows.start)


def _check_lookahead_probs(name: str, probs: np.ndarray, first_row: int) -> None:
    _check_probs(name, probs, first_row)
    _refuse(probs[..., 1:] > probs[..., :-1], probs[..., 1:], f"{name} do not descend but rise to {{}}", first_row)
    sums = probs.sum(axis=-1, dtype=np.float32)
    _refuse(sums > 1 + _MAP_TOLERANCE, sums, f"{name} sum to {{:.3f}}, more than 1,", first_row)


def _check_experts(name: str, ids: np.ndarray, num_experts: int, first_row: int) -> None:
    _refuse((ids < 0) | (ids >= num_experts), ids, f"{name} hold {{}}, outside 0..{num_experts - 1},", first_row)
    ordered = np.sort(ids, axis=-1)
    _refuse(ordered[..., 1:] == ordered[..., :-1], ordered[..., 1:], f"{name} name expert {{}} twice", first_row)


def _check_probs(name: str, probs: np.ndarray, first_row: int) -> None:
    _refuse(~(np.isfinite(probs) & (probs >= 0)), probs, f"{name} are negative, NaN or infinite ({{}})", first_row)


def _check_sums(complaint: str, probs: np.ndarray, tolerance: float, first_row: int) -> None:
    sums = probs.sum(axis=-1, dtype=np.float32)
    _refuse(np.abs(sums - 1) > tolerance, sums, complaint, first_row)


def _refuse(
    bad: np.ndarray, values: np.ndarray, complaint: str, first_row: int = 0, places: tuple[str, ...] = ("row", "layer")
) -> None:
    """Raise if any entry of `bad` [n] or [n, layers, ...] is set, naming the first such value and its position."""
    if bad.any():
        index = np.unravel_index(int(np.argmax(bad)), bad.shape)
        numbers = (index[0] + first_row, *index[1:])
        where = ", ".join(f"{place} {number}" for place, number in zip(places, numbers, strict=False))
        raise FinemoeError(f"{complaint.format(values[index])} in {where}")
