"""How well a store's best match fits, as a function of the number of maps in the store (Fig. 16a)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from finemoe.intervals import bootstrap_mean
from finemoe.maps.search import TrajectorySearch
from finemoe.maps.store import ExpertMapStore
from finemoe.policies.finemoe import fill_store
from finemoe.traces import DECODE, RoutingTrace

_ROWS_PER_REQUEST = 8


def similarity_table(
    history: RoutingTrace, served: RoutingTrace, capacities: Sequence[int], prefetch_distance: int, seed: int = 0
) -> pd.DataFrame:
    """Mean similarity of the best match over a sample of the served requests' decode iterations.

    Returns:
        Rows (search, capacity, records, similarity, low, high); for the trajectory search, a mean over the layers it guides from.
    """
    requests, rows = _sample(served)
    found = []
    for capacity in capacities:
        store = fill_store(_empty_store(history, capacity, prefetch_distance), history)
        scores = {"trajectory": _trajectory_scores(store, served.maps(rows), prefetch_distance)}
        if store.embedding_dim:
            scores["semantic"] = store.nearest_embeddings(served.embeddings(rows))[1]
        for search, values in scores.items():
            interval = bootstrap_mean(_by_request(values, requests), seed=seed)
            bounds = {"similarity": interval.value, "low": interval.low, "high": interval.high}
            found.append({"search": search, "capacity": capacity, "records": len(store), **bounds})
    return pd.DataFrame(found)


def _empty_store(history: RoutingTrace, capacity: int, prefetch_distance: int) -> ExpertMapStore:
    embedding_dim = 0 if history.embedding_table is None else history.embedding_table.shape[1]
    return ExpertMapStore(history.num_layers, history.num_experts, embedding_dim, capacity, prefetch_distance, history.model)


def _sample(served: RoutingTrace) -> tuple[np.ndarray, np.ndarray]:
    """Requests and rows of decode iterations, evenly spread over each request."""
    requests, rows = [], []
    for request in range(served.num_requests):
        decode = np.flatnonzero(served.phase[served.rows_of(request)] == DECODE) + served.offsets[request]
        chosen = decode[np.linspace(0, len(decode) - 1, min(_ROWS_PER_REQUEST, len(decode))).astype(int)]
        requests.append(np.full(len(chosen), request))
        rows.append(chosen)
    return np.concatenate(requests), np.concatenate(rows)


def _trajectory_scores(store: ExpertMapStore, maps: np.ndarray, prefetch_distance: int) -> np.ndarray:
    search, scores = TrajectorySearch(store, len(maps)), []
    for layer in range(store.num_layers - prefetch_distance):
        search.observe(layer, np.ascontiguousarray(maps[:, layer]))
        scores.append(search.nearest()[1])
    mean: np.ndarray = np.mean(scores, axis=0)
    return mean


def _by_request(values: np.ndarray, requests: np.ndarray) -> np.ndarray:
    counts = np.bincount(requests)
    has_rows = counts > 0  # a request that ended with its first token has no decode iterations
    means: np.ndarray = np.bincount(requests, weights=values)[has_rows] / counts[has_rows]
    return means
