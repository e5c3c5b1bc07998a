"""How far prediction three layers ahead gets on real routing: the cross-check of DESIGN 4, method by method.

Recall at K over decode rows: as many experts are named per layer as the token activates. `python -m
finemoe.artifact.analysis.recalls` writes the table for the public gpt-oss-20b trace, next to values that were computed
independently on the publisher's whole set.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from finemoe.artifact.analysis.entropy import decode_rows, requests_of
from finemoe.artifact.analysis.prediction import overlap, own_count_hits
from finemoe.artifact.plotting import save_table
from finemoe.importers.gpt_oss import load_gpt_oss, sample_path
from finemoe.intervals import bootstrap_ratio
from finemoe.maps.expert_map import top_ids
from finemoe.paths import DATA
from finemoe.policies.promoe import trained_predictors
from finemoe.traces import RoutingTrace

INDEPENDENT = {
    "request history": 0.42,
    "nearest of 1,000 maps": 0.61,
    "nearest of 32,000 maps": 0.70,
    "32 nearest of 32,000, weighted": 0.735,
    "32 nearest and learned predictor": 0.75,  # also with token statistics, which are left out here
}
_NUM_NEIGHBOURS = 32
_SHARPNESS = 20.0  # in exp(sharpness x cosine), the neighbours' weights
_BLOCK_ROWS = 512


def recall_table(
    history: RoutingTrace, served: RoutingTrace, distance: int = 3, num_rows: int = 4000, seed: int = 0
) -> pd.DataFrame:
    """Recall at K of every method, `distance` layers ahead.

    Args:
        history: what the methods know in advance; served: other requests, which are predicted.
        num_rows: number of decode rows of the served requests to predict, drawn at random.
    Returns:
        Rows (method, recall, low, high, independent), with intervals over requests.
    """
    rows = decode_rows(served)
    rows = np.sort(np.random.default_rng(seed).permutation(rows)[:num_rows])
    hits = {"request history": own_count_hits(served, rows, [distance])[0]}
    hits |= _neighbour_hits(history, served, rows, distance, seed)
    owners = requests_of(served, rows)
    num_accesses = (served.num_layers - distance) * served.top_k
    table = []
    for method, found in hits.items():
        by_request = np.bincount(owners, weights=found, minlength=served.num_requests)
        accesses = np.bincount(owners, minlength=served.num_requests) * num_accesses
        interval = bootstrap_ratio(by_request, accesses, seed=seed)
        table.append({"method": method, "recall": interval.value, "low": interval.low, "high": interval.high})
    return pd.DataFrame(table).assign(independent=lambda t: t.method.map(INDEPENDENT))


def weighted_nearest(scores: np.ndarray, guides: np.ndarray, num_neighbours: int = _NUM_NEIGHBOURS) -> np.ndarray:
    """Mean of the distributions of each row's most similar records, weighted by exp(sharpness x cosine), [B, J].

    Args:
        scores: [B, C] cosines.
        guides: [C, J] distributions of the records.
    """
    num_neighbours = min(num_neighbours, scores.shape[1])
    nearest = np.argpartition(-scores, num_neighbours - 1, axis=1)[:, :num_neighbours]
    cosines = np.take_along_axis(scores, nearest, axis=1)
    weights = np.exp(_SHARPNESS * (cosines - cosines.max(axis=1, keepdims=True)))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.einsum("bn,bnj->bj", weights, guides[nearest])


def _neighbour_hits(
    history: RoutingTrace, served: RoutingTrace, rows: np.ndarray, distance: int, seed: int
) -> dict[str, np.ndarray]:
    """Hits of the methods that search maps, [n] each."""
    predictors = trained_predictors(history, distance)[0]
    small, large = _drawn_maps(history, 1000, seed), _drawn_maps(history, 32_000, seed)
    hits = {method: np.zeros(len(rows)) for method in list(INDEPENDENT)[1:]}
    for begin in range(0, len(rows), _BLOCK_ROWS):
        block = slice(begin, begin + _BLOCK_ROWS)
        maps, activated = served.maps(rows[block]), served.expert_ids[rows[block]].astype(np.int64)
        searches = zip(_prefix_cosines(small, maps), _prefix_cosines(large, maps), strict=True)
        for layer, (few, many) in enumerate(searches):
            target = layer + distance
            if target >= served.num_layers:
                break
            weighted = weighted_nearest(many, large[:, target])
            learned = predictors.predict(target, maps.transpose(1, 0, 2))
            guesses = (small[few.argmax(axis=1), target], large[many.argmax(axis=1), target], weighted, weighted + learned)
            for method, guess in zip(hits, guesses, strict=True):
                hits[method][block] += overlap(top_ids(guess, served.top_k), activated[:, target])
    return hits


def _drawn_maps(history: RoutingTrace, count: int, seed: int) -> np.ndarray:
    """Expert maps of rows drawn at random, [count, L, J]; all maps if there are fewer."""
    return history.maps(np.sort(np.random.default_rng(seed).permutation(history.num_rows)[:count]))


def _prefix_cosines(stored: np.ndarray, maps: np.ndarray) -> Iterator[np.ndarray]:
    """Eq. 5 for prefixes of 1, 2, ... layers: [B, C]."""
    dots = np.zeros((len(maps), len(stored)), dtype=np.float32)
    squares, own = np.zeros(len(stored), dtype=np.float32), np.zeros((len(maps), 1), dtype=np.float32)
    for layer in range(maps.shape[1]):
        dots += maps[:, layer] @ stored[:, layer].T
        squares += np.square(stored[:, layer]).sum(axis=1)
        own += np.square(maps[:, layer]).sum(axis=1, keepdims=True)
        yield dots / np.sqrt(squares * own)


def write_table(
    trace: Annotated[Path | None, typer.Argument(help="decode_traces.npz; default: next to the checkout")] = None,
    output: Annotated[Path, typer.Option()] = DATA / "reference" / "recalls_gpt_oss.csv",
) -> None:
    """Compute the recalls on the public gpt-oss-20b trace and write them as CSV."""
    routing = load_gpt_oss(trace or sample_path())
    table = recall_table(routing.split("history"), routing.split("served"))
    save_table(table, output)
    typer.echo(table.to_string(index=False))


if __name__ == "__main__":
    typer.run(write_table)
