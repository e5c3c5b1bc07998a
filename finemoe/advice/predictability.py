"""How well the experts of a layer can be predicted: K experts for a token that activates K, so recall equals precision."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from finemoe.advice.sample import Sample
from finemoe.advice.systems import FINEMOE, PLUS
from finemoe.advice.usage import decoded, usage_counts
from finemoe.intervals import bootstrap_ratio
from finemoe.report import Report
from finemoe.simulation.knowledge import Knowledge
from finemoe.simulation.replay import sweep
from finemoe.simulation.systems import System
from finemoe.traces import PREFILL, RoutingTrace

HINDSIGHT, HISTORY, PROMPT, SO_FAR, LAST = (
    "most used, in hindsight",
    "most used in the history",
    "most used in the prompt",
    "most used so far in the request",
    "the token before",
)
CHANCE = "chance"
_ANY_MEMORY = 0.5  # recall does not depend on expert memory


def of_decoding(sample: Sample) -> Sample:
    """The sample without prompts. Systems are scored on it like simple predictors: a prompt demands large sets, which are easy to
    predict."""
    return replace(sample, served=decoded(sample.served))


def simple_recalls(sample: Sample, seed: int = 0) -> list[dict[str, Any]]:
    """Recall of predictors that need no training, on decoded tokens of the served requests that have a preceding token.

    Returns:
        Rows (predictor, distance, recall, low, high): the share of activated experts that was predicted, with its 95 % interval
        over requests; distance is None, because these predictors do not use earlier layers.
    """
    served = decoded(sample.served)
    demanded = np.maximum(np.diff(served.offsets) - 1.0, 0) * served.num_layers * served.top_k
    found = [_row(CHANCE, served.top_k / served.num_experts)]
    has_any = demanded > 0
    for name, of_request in _hits(sample, served).items() if has_any.any() else ():
        interval = bootstrap_ratio(of_request[has_any], demanded[has_any], seed=seed)
        found.append(_row(name, float(interval.value), float(interval.low), float(interval.high)))
    return found


def learned_recalls(
    sample: Sample, known: Knowledge, systems: Mapping[str, System], distances: tuple[int, ...], distance: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Recall of prefetching systems in a replay, on layers that have not run yet; rows as in `simple_recalls`, without intervals.

    Args:
        known: what systems know beforehand, at `distance`. systems: those that the trace can drive.
        distances: layers ahead for FineMoE, whose search is the same at each. distance: layers ahead for all others.
            finemoe-plus predicts at every distance: its last forecast before the gate counts, and its distance is None.
    """
    found = []
    for name, system in systems.items():
        for ahead in sorted({*distances, distance}) if name == FINEMOE else [distance]:
            at = known if ahead == distance else sample.knowledge(ahead, seed)
            options: dict[str, Any] = {"history": at.of(system.policy), "prefetch_distance": ahead, "seed": seed}
            report = sweep(sample.served, system.policy, [_ANY_MEMORY], **options, **system.options)[0]
            found.append(_of_system(name, report.recall_at_k, ahead))
    return [row for row in found if not np.isnan(row["recall"])]


def recalls_of(reports: Mapping[tuple[str, int], Report], distance: int, systems: Iterable[str]) -> list[dict[str, Any]]:
    """The same from existing reports, at d = `distance`."""
    recalls = {name: report.recall_at_k for (name, _), report in reports.items() if name in systems}
    return [_of_system(name, recall, distance) for name, recall in recalls.items() if not np.isnan(recall)]


def _of_system(name: str, recall: float, distance: int) -> dict[str, Any]:
    return _row(name, recall) | {"distance": None if name == PLUS else distance}


def _row(predictor: str, recall: float, low: float = float("nan"), high: float = float("nan")) -> dict[str, Any]:
    return {"predictor": predictor, "distance": None, "recall": recall, "low": low, "high": high}


def _hits(sample: Sample, served: RoutingTrace) -> dict[str, np.ndarray]:
    """Number of experts that each simple predictor predicted correctly, per request, [R]."""
    lists = {HINDSIGHT: usage_counts(served)}
    if sample.history is not None:
        lists[HISTORY] = usage_counts(decoded(sample.history))
    is_named = {name: _most_used(counts, served.top_k) for name, counts in lists.items()}
    first_rows = sample.served.offsets[:-1]
    has_prompts = served is not sample.served and bool((sample.served.phase[first_rows] == PREFILL).all())
    names = [*lists, *([PROMPT] if has_prompts else []), SO_FAR, LAST]
    hits = {name: np.zeros(served.num_requests) for name in names}
    for request in range(served.num_requests):
        used = _one_hot(served, served.rows_of(request))
        if has_prompts:
            is_named[PROMPT] = _most_used(_prompt_counts(sample.served, request), served.top_k)
        for name, named in is_named.items():
            hits[name][request] = np.count_nonzero(used[1:] & named)
        hits[LAST][request] = np.count_nonzero(used[1:] & used[:-1])
        hits[SO_FAR][request] = _hits_so_far(used, served.top_k)
    return hits


def _hits_so_far(used: np.ndarray, top_k: int) -> int:
    counts, found = np.zeros(used.shape[1:], dtype=np.int64), 0
    for before, row in itertools.pairwise(used):
        counts += before
        found += int(np.count_nonzero(row & _most_used(counts, top_k)))
    return found


def _prompt_counts(trace: RoutingTrace, request: int) -> np.ndarray:
    rows = trace.rows_of(request)
    is_prompt = trace.phase[rows] == PREFILL
    counts: np.ndarray = _one_hot(trace, slice(rows.start, rows.start + int(is_prompt.sum()))).sum(axis=0)
    return counts


def _one_hot(trace: RoutingTrace, rows: slice) -> np.ndarray:
    """Whether each row activates each expert, [n, L, J]."""
    used = np.zeros((rows.stop - rows.start, trace.num_layers, trace.num_experts), dtype=np.bool_)
    np.put_along_axis(used, trace.expert_ids[rows].astype(np.int64), True, axis=-1)
    return used


def _most_used(counts: np.ndarray, top_k: int) -> np.ndarray:
    """The K experts of each layer with the largest counts, [L, J] bool; ties go to lower ids."""
    named = np.zeros(counts.shape, dtype=np.bool_)
    np.put_along_axis(named, np.argsort(-counts, axis=1, kind="stable")[:, :top_k], True, axis=1)
    return named
