"""How flat expert activation is, coarse and fine (Fig. 3).

Entropy in bits per layer: of one request's summed counts (coarse), of a single iteration (fine), and of the running sum. Entropy
is concave, so coarse >= fine holds for any data. Two other quantities carry information: the same entropies of gate
probabilities, and a null in which iterations are shuffled across requests. The null removes only the request that an iteration
belongs to, so the difference between null and coarse is what a request's identity reveals about its experts.
"""

import numpy as np
import pandas as pd

from finemoe.errors import FinemoeError
from finemoe.intervals import bootstrap_mean
from finemoe.traces import DECODE, RoutingTrace


def decode_rows(trace: RoutingTrace) -> np.ndarray:
    """Indices of the rows that are single-token decode iterations, [n].

    Raises:
        FinemoeError: the trace has none.
    """
    rows = np.flatnonzero(trace.phase == DECODE)
    if not len(rows):
        raise FinemoeError("this trace has no decode iterations; record it with max_new_tokens of at least 2")
    return rows


def row_weights(trace: RoutingTrace, rows: np.ndarray, of: str) -> np.ndarray:
    """The weights to sum: [n, L, J] 0/1 counts of the activated experts (of="counts") or gate probabilities
    (of="probabilities")."""
    if of == "probabilities":
        return trace.maps(rows)
    weights = np.zeros((len(rows), trace.num_layers, trace.num_experts), dtype=np.float32)
    np.put_along_axis(weights, trace.expert_ids[rows].astype(np.int64), 1.0, axis=-1)
    return weights


def requests_of(trace: RoutingTrace, rows: np.ndarray) -> np.ndarray:
    """The request of each row, [n]."""
    return np.searchsorted(trace.offsets, rows, side="right") - 1


def shuffled(owners: np.ndarray, seed: int) -> np.ndarray:
    """The null: the same requests with the same lengths, with iterations assigned at random."""
    return np.random.default_rng(seed).permutation(owners)


def request_entropies(weights: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(coarse, fine) entropies per request and layer, each [R, L], in bits; arguments as in `coarse_entropy`."""
    return coarse_entropy(weights, owners), _fine_entropy(weights, owners)


def coarse_entropy(weights: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Entropy of every request's sum over its iterations, [R, L] bits.

    Args:
        weights: [n, L, J] of single-token iterations.
        owners: [n] their requests.
    """
    return np.stack([entropy_bits(weights[owners == request].sum(axis=0)) for request in np.unique(owners)])


def _fine_entropy(weights: np.ndarray, owners: np.ndarray) -> np.ndarray:
    # One request at a time, so that the logarithms of a long trace are never in memory at once.
    return np.stack([entropy_bits(weights[owners == request]).mean(axis=0) for request in np.unique(owners)])


def entropy_table(trace: RoutingTrace, seed: int = 0) -> pd.DataFrame:
    """Mean entropy over layers (coarse, fine and null), from counts and from probabilities (F3b).

    Returns:
        One row per (of, kind): entropy_bits, low, high (95 % over requests), and the maximum log2 J.
    """
    rows = decode_rows(trace)
    owners = requests_of(trace, rows)
    records = []
    for of in ("counts", "probabilities"):
        weights = row_weights(trace, rows, of)
        coarse, fine = request_entropies(weights, owners)
        null = coarse_entropy(weights, shuffled(owners, seed))
        for kind, values in (("fine", fine), ("coarse", coarse), ("shuffled", null)):
            interval = bootstrap_mean(values.mean(axis=1), seed=seed)
            records.append({"of": of, "kind": kind, "entropy_bits": interval.value, "low": interval.low, "high": interval.high})
    return pd.DataFrame(records).assign(max_bits=np.log2(trace.num_experts))


def running_entropy(trace: RoutingTrace, num_iterations: int, seed: int = 0) -> pd.DataFrame:
    """Entropy of the running sum of counts after 1, 2, … decode iterations, mean over layers (F3c), and its null.

    Only requests with at least `num_iterations` decode iterations are included, so that every point averages the same requests.
    If most requests are shorter, the curve ends at their median length.
    """
    rows = decode_rows(trace)
    owners = requests_of(trace, rows)
    num_iterations = min(num_iterations, int(np.median(np.unique(owners, return_counts=True)[1])))
    weights = row_weights(trace, rows, "counts")
    tables = [
        _running(weights, owners, num_iterations, seed).assign(kind="requests"),
        _running(weights[np.argsort(shuffled(np.arange(len(owners)), seed))], owners, num_iterations, seed).assign(
            kind="shuffled"
        ),
    ]
    return pd.concat(tables, ignore_index=True)


def _running(weights: np.ndarray, owners: np.ndarray, num_iterations: int, seed: int) -> pd.DataFrame:
    starts = np.searchsorted(owners, np.unique(owners))
    lengths = np.diff(np.append(starts, len(owners)))
    curves = [
        entropy_bits(np.cumsum(weights[start : start + num_iterations], axis=0)).mean(axis=1)
        for start, length in zip(starts, lengths, strict=True)
        if length >= num_iterations
    ]
    interval = bootstrap_mean(np.stack(curves), seed=seed)
    return pd.DataFrame(
        {
            "iterations": np.arange(1, num_iterations + 1),
            "entropy_bits": interval.value,
            "low": interval.low,
            "high": interval.high,
            "num_requests": len(curves),
        }
    )


def plateau_after(curve: np.ndarray, share: float = 0.9) -> int:
    """The number of iterations after which a rising curve [n] has reached `share` of its total rise."""
    rise = curve[-1] - curve[0]
    return int(np.argmax(curve >= curve[0] + share * rise)) + 1


def entropy_bits(weights: np.ndarray) -> np.ndarray:
    """Shannon entropy in bits of non-negative weights along the last axis, normalised there; 0 if all weights are 0."""
    weights = np.asarray(weights, dtype=float)
    totals = weights.sum(axis=-1, keepdims=True)
    shares = np.divide(weights, totals, out=np.zeros_like(weights), where=totals > 0)
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return -(shares * logs).sum(axis=-1)
