"""How well fine and coarse statistics predict the experts d layers ahead, at equal bytes (Fig. 4).

Every method names exactly K experts per token and predicted layer, so all move the same bytes, and a hit rate is the recall at K
of DESIGN 4. Fine is the paper's trajectory search for the stored map with the most similar prefix: once over the paper's store,
in which records replace each other by redundancy, and once over as many history maps drawn at random. Coarse are request-level
counts.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from finemoe.artifact.analysis.entropy import decode_rows, requests_of
from finemoe.intervals import bootstrap_ratio
from finemoe.maps.expert_map import top_ids
from finemoe.maps.store import ExpertMapStore
from finemoe.policies.finemoe import fill_store
from finemoe.policies.moe_infinity import request_counts
from finemoe.policies.promoe import trained_predictors
from finemoe.traces import RoutingTrace

METHODS = {
    "expert maps": "fine: nearest map by prefix (Eq. 5), store by RDY",
    "expert maps, random store": "fine: the same search, C maps drawn at random",
    "routers ahead": "the routers, applied d layers ahead (Mixtral-Offloading at d = 1)",
    "learned predictor": "learned from the gates of the last layers (ProMoE)",
    "request neighbour": "coarse: nearest past request by counts so far (MoE-Infinity)",
    "request history": "coarse: the request's own counts so far",
    "popularity": "no request at all: counts over the history",
}
_BLOCK_ROWS = 1024


def prediction_table(
    history: RoutingTrace, served: RoutingTrace, distances: list[int], store_capacity: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Hit rate of every method at every prefetch distance, over the served requests' decode iterations.

    Args:
        history: what the methods know in advance; served: other requests, which are predicted.
        distances: d in layers; layers d+1..L are predicted. Routers predict only at the strides recorded in the trace.
        store_capacity: C, in maps.
    Returns:
        Rows (method, distance, hit_rate, low, high), with intervals over requests.
    """
    rows = decode_rows(served)
    owners = requests_of(served, rows)
    known = [distance for distance in distances if distance in served.lookahead_strides]
    hits = {
        "routers ahead": _ahead_hits(served, rows, known),
        "learned predictor": _learned_hits(history, served, rows, distances),
        "expert maps": _map_hits(redundancy_store(history, store_capacity), served, rows, distances),
        "expert maps, random store": _map_hits(random_store(history, store_capacity, seed), served, rows, distances),
        "request neighbour": _static_hits(_neighbour_choice(history, served, rows), served, rows, distances),
        "request history": own_count_hits(served, rows, distances),
        "popularity": _static_hits(_popular_choice(history, rows), served, rows, distances),
    }
    covered = dict.fromkeys(METHODS, distances) | {"routers ahead": known}
    tables = [
        _by_request(hits[name], owners, served, covered[name], seed).assign(method=name) for name in METHODS if covered[name]
    ]
    return pd.concat(tables, ignore_index=True)


def overlap(predicted: np.ndarray, activated: np.ndarray) -> np.ndarray:
    """Number of activated experts that were predicted: [..., K] and [..., K] ids -> [...]."""
    return (predicted[..., :, None] == activated[..., None, :]).any(axis=-2).sum(axis=-1)


def nearest_prefixes(store: ExpertMapStore, maps: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Eq. 5 for many rows at once: (layer, best record of each row [n]) for the prefixes ending at that layer; maps [n, L, J]."""
    stored = store.maps()
    dots = np.zeros((len(maps), len(stored)), dtype=np.float32)
    squares = np.zeros(len(stored), dtype=np.float32)
    for layer in range(maps.shape[1]):
        dots += maps[:, layer] @ stored[:, layer].T
        squares += np.square(stored[:, layer]).sum(axis=1)
        yield layer, (dots / np.sqrt(squares)).argmax(axis=1)


def redundancy_store(history: RoutingTrace, capacity: int) -> ExpertMapStore:
    """The paper's store (section 4.4): every history map is inserted and replaces the map it is most redundant with."""
    return fill_store(_empty_store(history, capacity), history)


def random_store(history: RoutingTrace, capacity: int, seed: int) -> ExpertMapStore:
    """As many history maps drawn at random: as dense as the history itself where iterations are common."""
    drawn = np.random.default_rng(seed).permutation(history.num_rows)[:capacity]
    store = _empty_store(history, capacity)
    rows = np.sort(drawn)
    store.add(history.maps(rows), history.embeddings(rows) if store.embedding_dim else None)
    return store


def _empty_store(history: RoutingTrace, capacity: int) -> ExpertMapStore:
    dim = 0 if history.embedding_table is None else history.embedding_table.shape[1]
    return ExpertMapStore(history.num_layers, history.num_experts, dim, capacity, prefetch_distance=min(3, history.num_layers))


def _map_hits(store: ExpertMapStore, served: RoutingTrace, rows: np.ndarray, distances: list[int]) -> np.ndarray:
    """Hits of expert maps, [distances, n]."""
    guided = top_ids(store.maps(), served.top_k)
    hits = np.zeros((len(distances), len(rows)), dtype=np.int64)
    for begin in range(0, len(rows), _BLOCK_ROWS):
        block = rows[begin : begin + _BLOCK_ROWS]
        activated = served.expert_ids[block].astype(np.int64)
        for layer, records in nearest_prefixes(store, served.maps(block)):
            for index, distance in enumerate(distances):
                target = layer + distance
                if target < served.num_layers:
                    hits[index, begin : begin + len(block)] += overlap(guided[records, target], activated[:, target])
    return hits


def _ahead_hits(served: RoutingTrace, rows: np.ndarray, distances: list[int]) -> np.ndarray:
    """Hits of the routers applied ahead, [distances, n]."""
    hits = np.zeros((len(distances), len(rows)), dtype=np.int64)
    for index, distance in enumerate(distances):
        ranked = top_ids(served.lookahead(rows, distance)[:, :-distance], served.top_k)
        hits[index] = overlap(ranked, served.expert_ids[rows, distance:].astype(np.int64)).sum(axis=1)
    return hits


def _learned_hits(history: RoutingTrace, served: RoutingTrace, rows: np.ndarray, distances: list[int]) -> np.ndarray:
    """Hits of learned predictors, [distances, n]."""
    hits = np.zeros((len(distances), len(rows)), dtype=np.int64)
    for index, (distance, predictors) in enumerate(zip(distances, trained_predictors(history, *distances), strict=True)):
        for begin in range(0, len(rows), _BLOCK_ROWS):
            block = rows[begin : begin + _BLOCK_ROWS]
            gates = served.maps(block).transpose(1, 0, 2)
            activated = served.expert_ids[block].astype(np.int64)
            for target in range(distance, served.num_layers):
                ranked = top_ids(predictors.predict(target, gates), served.top_k)
                hits[index, begin : begin + len(block)] += overlap(ranked, activated[:, target])
    return hits


def _static_hits(choice: np.ndarray, served: RoutingTrace, rows: np.ndarray, distances: list[int]) -> np.ndarray:
    """Hits of a choice [n, L, K] that does not depend on the distance, [distances, n]."""
    per_layer = overlap(choice, served.expert_ids[rows].astype(np.int64))
    return np.stack([per_layer[:, distance:].sum(axis=1) for distance in distances])


def _counts_so_far(trace: RoutingTrace, rows: np.ndarray) -> np.ndarray:
    """Activation counts of the row's request over its earlier rows, [n, L, J]."""
    counts = np.zeros((len(rows), trace.num_layers, trace.num_experts), dtype=np.float32)
    layers = np.arange(trace.num_layers)[:, None]
    running = np.zeros(counts.shape[1:], dtype=np.float32)
    wanted = {int(row): index for index, row in enumerate(rows)}
    starts = set(trace.offsets.tolist())
    for row in range(trace.num_rows):
        if row in starts:
            running[:] = 0
        if row in wanted:
            counts[wanted[row]] = running
        running[layers, trace.expert_ids[row]] += 1
    return counts


def own_count_hits(served: RoutingTrace, rows: np.ndarray, distances: list[int]) -> np.ndarray:
    """Hits of the K experts that each row's request activated most often before, [distances, n]."""
    return _static_hits(top_ids(_counts_so_far(served, rows), served.top_k), served, rows, distances)


def _popular_choice(history: RoutingTrace, rows: np.ndarray) -> np.ndarray:
    popular = top_ids(request_counts(history).sum(axis=0), history.top_k)
    return np.broadcast_to(popular, (len(rows), *popular.shape))


def _neighbour_choice(history: RoutingTrace, served: RoutingTrace, rows: np.ndarray) -> np.ndarray:
    past = request_counts(history)
    flat = past.reshape(len(past), -1)
    unit = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-20)
    so_far = _counts_so_far(served, rows).reshape(len(rows), -1)
    return top_ids(past, history.top_k)[(so_far @ unit.T).argmax(axis=1)]


def _by_request(hits: np.ndarray, owners: np.ndarray, served: RoutingTrace, distances: list[int], seed: int) -> pd.DataFrame:
    totals = np.stack([np.bincount(owners, weights=row, minlength=served.num_requests) for row in hits], axis=1)
    layers = served.num_layers - np.array(distances)
    accesses = np.bincount(owners, minlength=served.num_requests)[:, None] * layers * served.top_k
    interval = bootstrap_ratio(totals, accesses, seed=seed)
    return pd.DataFrame({"distance": distances, "hit_rate": interval.value, "low": interval.low, "high": interval.high})
