"""How tokens use experts: how many over a window of tokens, how soon again, and how unequally."""

import itertools
from typing import Any

import numpy as np

from finemoe.traces import DECODE, RoutingTrace

_WINDOWS = (1, 10, 100, 1000)  # tokens
_BLOCK_ROWS = 4096


def decoded(trace: RoutingTrace) -> RoutingTrace:
    """The trace without prefills; a trace of prefills only is returned unchanged."""
    return trace.decode() if (trace.phase == DECODE).any() else trace


def decode_steps(trace: RoutingTrace) -> int:
    """Number of decode iterations; each yields one token, or several if requests were recorded together."""
    is_decode = trace.phase == DECODE
    owners = np.repeat(np.arange(trace.num_requests), np.diff(trace.offsets))[is_decode]
    step = trace.step[is_decode]
    return int(len(step) > 0) + int(np.count_nonzero((np.diff(owners) != 0) | (np.diff(step) != 0)))


def working_set_rows(trace: RoutingTrace, windows: tuple[int, ...] = _WINDOWS) -> list[dict[str, Any]]:
    """Distinct experts of a layer over windows of consecutive tokens of a request.

    Returns:
        Rows (tokens, mean, least, greatest, experts): from the means over the windows of each layer, their mean, minimum and
        maximum over layers, and their sum, the experts of the whole model. Windows longer than every request are left out.
    """
    rows = []
    for tokens in windows:
        if (counts := _distinct(trace, tokens)) is not None:
            rows.append({"tokens": tokens} | _spread(counts))
    return rows


def request_rows(trace: RoutingTrace) -> dict[str, Any]:
    """Distinct experts of a layer over a whole request, as in `working_set_rows`; tokens is the mean length of a request."""
    lengths = np.diff(trace.offsets)
    counts = np.mean([_used(trace, trace.rows_of(request)).sum(axis=1) for request in np.flatnonzero(lengths).tolist()], axis=0)
    return {"tokens": float(lengths[lengths > 0].mean())} | _spread(counts)


def concentration_rows(trace: RoutingTrace) -> list[dict[str, Any]]:
    """How unequally a layer's experts are used.

    Returns:
        A row for each layer: layer; touched, number of experts used at all; entropy_bits, the entropy of the shares of use;
        effective, 2 to that power, the number of equally used experts with the same entropy; top_tenth and top_quarter, the
        share of use of the most used 10 % and 25 % of experts; gini, 0 if all are used alike, 1 if one expert has all uses.
    """
    counts = usage_counts(trace)
    shares = np.sort(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), axis=1)[:, ::-1]
    return [{"layer": layer, "touched": int((row > 0).sum())} | _inequality(row) for layer, row in enumerate(shares)]


def usage_counts(trace: RoutingTrace) -> np.ndarray:
    """Number of rows that used each expert, [L, J]."""
    counts = np.zeros((trace.num_layers, trace.num_experts), dtype=np.int64)
    for rows in _blocks(trace.num_rows):
        ids = trace.expert_ids[rows].astype(np.int64) + np.arange(trace.num_layers)[:, None] * trace.num_experts
        counts += np.bincount(ids.reshape(-1), minlength=counts.size).reshape(counts.shape)
    return counts


def reuse_rows(trace: RoutingTrace, within: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)) -> list[dict[str, Any]]:
    """How soon an expert is used again in its request, in tokens.

    Returns:
        Rows (tokens, share): the share of uses that follow the previous use of the same expert within that many tokens.
    """
    gaps = np.zeros(max(within) + 1, dtype=np.int64)
    for request, layer in itertools.product(range(trace.num_requests), range(trace.num_layers)):
        _count_gaps(trace.expert_ids[trace.rows_of(request), layer].astype(np.int64), gaps)
    total = trace.expert_ids.size
    return [{"tokens": tokens, "share": float(gaps[1 : tokens + 1].sum() / total)} for tokens in within]


def growth(trace: RoutingTrace) -> float:
    """The share of all used experts that are first used in the last quarter of a trace; in a longer trace there would be more."""
    bound = trace.num_rows - trace.num_rows // 4
    before, after = (_used(trace, rows) for rows in (slice(0, bound), slice(bound, trace.num_rows)))
    return float((after & ~before).sum() / max(1, (after | before).sum()))


def _distinct(trace: RoutingTrace, tokens: int) -> np.ndarray | None:
    """Mean number of distinct experts over all windows, [L]; None if no request is that long."""
    if tokens == 1:
        return np.full(trace.num_layers, float(trace.top_k)) if trace.num_rows else None
    total, number = np.zeros(trace.num_layers), 0
    for request in range(trace.num_requests):
        rows = trace.rows_of(request)
        for begin in range(rows.start, rows.stop - tokens + 1, tokens):
            total += _used(trace, slice(begin, begin + tokens)).sum(axis=1)
            number += 1
    return total / number if number else None


def _used(trace: RoutingTrace, rows: slice) -> np.ndarray:
    """Whether any of these rows uses an expert, [L, J]."""
    used = np.zeros((trace.num_layers, trace.num_experts), dtype=np.bool_)
    layers = np.arange(trace.num_layers)[:, None]
    for part in _blocks(rows.stop - rows.start, rows.start):
        used[layers, trace.expert_ids[part]] = True
    return used


def _spread(counts: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(counts.mean()),
        "least": float(counts.min()),
        "greatest": float(counts.max()),
        "experts": float(counts.sum()),
    }


def _inequality(shares: np.ndarray) -> dict[str, float]:
    """Inequality of one layer's shares, which are sorted in descending order."""
    positive, count = shares[shares > 0], len(shares)
    entropy = float(-(positive * np.log2(positive)).sum())
    gini = float(1 - 2 * (np.cumsum(shares[::-1]).sum() - 0.5) / count) if len(positive) else 0.0
    tops = {
        name: float(shares[: max(1, round(part * count))].sum()) for name, part in (("top_tenth", 0.1), ("top_quarter", 0.25))
    }
    return {"entropy_bits": entropy, "effective": 2.0**entropy, **tops, "gini": gini}


def _count_gaps(ids: np.ndarray, gaps: np.ndarray) -> None:
    """Add to `gaps`, for every use of an expert in one layer by one request's rows, ids [n, K], the number of tokens since its
    previous use, if there is one within the range of `gaps`."""
    experts, rows = ids.reshape(-1), np.repeat(np.arange(len(ids)), ids.shape[1])
    order = np.argsort(experts, kind="stable")  # rows ascend within an expert
    experts, rows = experts[order], rows[order]
    since = np.diff(rows)[experts[1:] == experts[:-1]]
    gaps += np.bincount(since[since < len(gaps)], minlength=len(gaps))


def _blocks(count: int, first: int = 0) -> list[slice]:
    return [slice(begin, min(begin + _BLOCK_ROWS, first + count)) for begin in range(first, first + count, _BLOCK_ROWS)]
