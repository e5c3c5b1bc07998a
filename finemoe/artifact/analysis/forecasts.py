"""How well learned forecasts predict real routing, by distance, with and without a history, and how well calibrated they are.

Recall at K over decode rows: as many experts are named as a layer demands. The requests of the public gpt-oss-20b trace are split
into five folds. With a history, the other four folds are learned in one pass; online, only the previously served requests are, in
the trace's order. `python -m finemoe.artifact.analysis.forecasts` writes both tables in a quarter of an hour on one core.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import typer

from finemoe.artifact.plotting import save_table
from finemoe.importers.gpt_oss import load_gpt_oss, sample_path
from finemoe.intervals import bootstrap_ratio
from finemoe.maps.expert_map import top_ids
from finemoe.maps.forecaster import Forecaster
from finemoe.paths import DATA
from finemoe.traces import RoutingTrace

NUM_FOLDS = 5
FARTHEST = 8
VARIANTS = {  # options of the forecaster for variants of online learning
    "16 units a network": {"num_units": 16},
    "64 units a network": {"num_units": 64},
    "128 units a network": {"num_units": 128},
    "256 units a network": {"num_units": 256},
    "128 units, 16 tokens remembered": {"num_units": 128, "memory_rows": 16},
}
_NUM_BINS = 10
_SPARED = 4  # the variants are evaluated on every fourth request


class Outcome(NamedTuple):
    """The outcome of the forecasts for some requests.

    Attributes:
        requests: [R] their numbers.
        hits, accesses: [R, H] experts named correctly, with as many named as demanded, and experts demanded, by distance 1..H.
        bins: [R, H, 10, 3] forecasts by probability: their number, the sum of their probabilities, and the number that came true.
    """

    requests: np.ndarray
    hits: np.ndarray
    accesses: np.ndarray
    bins: np.ndarray


def forecast_tables(trace: RoutingTrace) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Recalls, rows (setting, variant, fold, distance, recall, low, high), and calibration, rows (setting, variant, bin,
    forecasts, probability, demanded, distance, ece).

    A fold is "all" for all five together, and if there are no folds; intervals are over requests.
    """
    with_folds = list(with_history(trace))
    whole = {variant: _joined([outcome for name, _, outcome in with_folds if name == variant]) for variant, _, _ in with_folds}
    settings = [("history", variant, str(fold), outcome) for variant, fold, outcome in with_folds]
    settings += [("history", variant, "all", outcome) for variant, outcome in whole.items()]
    settings += [("online", variant, "all", outcome) for variant, outcome in online(trace)]
    recalls = [_recalls(outcome).assign(setting=s, variant=v, fold=f) for s, v, f, outcome in settings]
    bins = [_calibration(outcome).assign(setting=s, variant=v) for s, v, f, outcome in settings if f == "all"]
    return _ordered(recalls, ["setting", "variant", "fold"]), _ordered(bins, ["setting", "variant"])


def with_history(trace: RoutingTrace) -> Iterator[tuple[str, int, Outcome]]:
    """Predict every fold from the other four: (variant, fold, outcome)."""
    folds = fold_of(trace.num_requests)
    for fold in range(NUM_FOLDS):
        forecaster = _forecaster(trace)
        forecaster.learn_trace(trace.select(np.flatnonzero(folds != fold)), passes=1)
        for variant, adapts in (("adapts to each request", True), ("frozen", False)):
            forecaster.freeze(adapts)
            yield variant, fold, follow(forecaster, trace, np.flatnonzero(folds == fold))


def online(trace: RoutingTrace) -> Iterator[tuple[str, Outcome]]:
    """Learn from scratch in one pass over the requests, of which the second half is evaluated: (variant, outcome)."""
    everyone = np.arange(trace.num_requests)
    yield "all requests", _second_half(follow(_forecaster(trace), trace, everyone))
    spared = everyone[::_SPARED]
    untrained = _forecaster(trace, num_units=16)
    untrained.freeze(adapts=False)
    yield "a quarter of the requests: memory alone", _second_half(follow(untrained, trace, spared))
    for variant, options in VARIANTS.items():
        outcome = follow(_forecaster(trace, **options), trace, spared)
        yield f"a quarter of the requests: {variant}", _second_half(outcome)


def fold_of(num_requests: int, seed: int = 0) -> np.ndarray:
    """The fold of each request, [R] in 0..4."""
    folds: np.ndarray = np.random.default_rng(seed).permutation(num_requests) % NUM_FOLDS
    return folds


def follow(forecaster: Forecaster, trace: RoutingTrace, requests: Iterable[int]) -> Outcome:
    """Have a forecaster follow decode-only requests, one after the other, and evaluate its forecasts within each token."""
    requests = list(requests)
    found = [_follow_one(forecaster, trace, request) for request in requests]
    hits, accesses, bins = (np.array([one[place] for one in found]) for place in range(3))
    return Outcome(np.array(requests), hits, accesses, bins)


def _forecaster(trace: RoutingTrace, **options: Any) -> Forecaster:
    return Forecaster(trace.num_layers, trace.num_experts, trace.top_k, range(1, min(FARTHEST, trace.num_layers) + 1), **options)


def _follow_one(forecaster: Forecaster, trace: RoutingTrace, request: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = trace.rows_of(request)
    count = rows.stop - rows.start
    gates, experts = trace.maps(rows).transpose(1, 0, 2), trace.expert_ids[rows].astype(np.int64)
    is_first = np.arange(count) == 0
    _, forecasts = forecaster.forecast_block(gates, experts, np.arange(count + 1), np.zeros(count, dtype=bool), is_first)
    demanded = np.zeros((count, trace.num_layers, trace.num_experts), dtype=bool)
    np.put_along_axis(demanded, experts, True, axis=-1)
    hits, accesses = np.zeros((2, len(forecaster.distances)))
    bins = np.zeros((len(forecaster.distances), _NUM_BINS, 3))
    for distance in forecaster.distances:
        predicted, came = forecasts[:, : trace.num_layers - distance, distance - 1], demanded[:, distance:]
        named = np.take_along_axis(came, top_ids(predicted, trace.top_k).astype(np.int64), axis=-1)
        hits[distance - 1], accesses[distance - 1] = named.sum(), count * (trace.num_layers - distance) * trace.top_k
        bins[distance - 1] = _binned(predicted, came)
    return hits, accesses, bins


def _binned(predicted: np.ndarray, came: np.ndarray) -> np.ndarray:
    place = np.minimum((predicted * _NUM_BINS).astype(np.int64), _NUM_BINS - 1).reshape(-1)
    weights = (np.ones(place.size), predicted.reshape(-1), came.reshape(-1))
    return np.stack([np.bincount(place, weights=weight, minlength=_NUM_BINS) for weight in weights], axis=-1)


def _second_half(outcome: Outcome) -> Outcome:
    return Outcome(*(array[len(array) // 2 :] for array in outcome))


def _joined(outcomes: list[Outcome]) -> Outcome:
    """Merge outcomes, with requests in ascending order."""
    joined = Outcome(*(np.concatenate(arrays) for arrays in zip(*outcomes, strict=True)))
    order = np.argsort(joined.requests)
    return Outcome(*(array[order] for array in joined))


def _recalls(outcome: Outcome) -> pd.DataFrame:
    interval = bootstrap_ratio(outcome.hits, outcome.accesses)
    distances = np.arange(1, outcome.hits.shape[1] + 1)
    return pd.DataFrame({"distance": distances, "recall": interval.value, "low": interval.low, "high": interval.high})


def _calibration(outcome: Outcome) -> pd.DataFrame:
    """The share of forecasts that came true, by probability bin, and the expected calibration error of each distance."""
    tables = []
    for distance, bins in enumerate(outcome.bins.sum(axis=0), start=1):
        counts, predicted, came = bins.T
        some = counts > 0
        table = {"bin": np.arange(_NUM_BINS)[some], "forecasts": counts[some].astype(np.int64)}
        table |= {"probability": predicted[some] / counts[some], "demanded": came[some] / counts[some]}
        tables.append(pd.DataFrame(table).assign(distance=distance, ece=np.abs(predicted - came).sum() / counts.sum()))
    return pd.concat(tables, ignore_index=True)


def _ordered(tables: list[pd.DataFrame], first: list[str]) -> pd.DataFrame:
    table = pd.concat(tables, ignore_index=True)
    return table[[*first, *(name for name in table.columns if name not in first)]]


def write_tables(
    trace: Annotated[Path | None, typer.Argument(help="decode_traces.npz; default: next to the checkout")] = None,
    output: Annotated[Path, typer.Option(help="output folder")] = DATA / "reference",
) -> None:
    """Evaluate learned forecasts on the public gpt-oss-20b trace and write their recalls and calibration as CSV."""
    recalls, calibration = forecast_tables(load_gpt_oss(trace or sample_path()))
    save_table(recalls, output / "forecasts_gpt_oss.csv")
    save_table(calibration, output / "calibration_gpt_oss.csv")
    typer.echo(recalls[recalls.distance == min(3, FARTHEST)].to_string(index=False))


if __name__ == "__main__":
    typer.run(write_tables)
