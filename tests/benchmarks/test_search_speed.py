"""Speed of search and store (run with `make bench`): one layer's trajectory search at one row, as the engine calls it.

`whole_prefix` is the best whole-prefix version one can write: contiguous float32 prefixes, norms stored, one matrix-vector
product.
"""

import numpy as np
import pytest

from finemoe.maps.search import TrajectorySearch, guide
from finemoe.maps.store import ExpertMapStore

pytestmark = pytest.mark.timeout(900)  # large stores

GEOMETRIES = {"mixtral": (32, 8), "qwen": (24, 60), "phi": (32, 16)}
CAPACITIES = [1000, 32000]
DISTANCE = 3


def filled(geometry: str, capacity: int) -> tuple[ExpertMapStore, np.ndarray]:
    layers, experts = GEOMETRIES[geometry]
    rng = np.random.default_rng(0)
    maps = rng.dirichlet(np.full(experts, 0.3), size=(1000, layers)).astype(np.float32)
    store = ExpertMapStore(layers, experts, 64, capacity, DISTANCE)
    for begin in range(0, capacity, 1000):
        store.add(np.roll(maps, begin // 1000, axis=2), rng.normal(size=(1000, 64)).astype(np.float32))
    return store, rng.dirichlet(np.full(experts, 0.3), size=(layers, 1)).astype(np.float32)


@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_incremental_search_of_a_layer(benchmark, geometry, capacity):
    """Mean over the layers of one iteration: observe the gate, find the nearest, read the guiding distribution."""
    store, gates = filled(geometry, capacity)
    guided = store.num_layers - DISTANCE

    def iteration():
        search = TrajectorySearch(store, 1)
        for layer in range(guided):
            search.observe(layer, gates[layer])
            neighbours, _ = search.nearest()
            guide(store, neighbours, layer + DISTANCE)

    benchmark.extra_info["per_layer_divisor"] = guided
    benchmark.pedantic(iteration, rounds=30, warmup_rounds=3)
    benchmark.extra_info["median_us_per_layer"] = round(benchmark.stats.stats.median / guided * 1e6, 2)


@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_whole_prefix_search_of_a_layer(benchmark, geometry, capacity):
    """The same iteration with a whole-prefix product at every layer; prefixes contiguous and norms stored beforehand."""
    store, gates = filled(geometry, capacity)
    maps = store.maps()
    layers = range(0, store.num_layers - DISTANCE, 4 if capacity > 1000 else 1)
    prefixes = [np.ascontiguousarray(maps[:, : layer + 1].reshape(len(maps), -1)) for layer in layers]
    norms = [1.0 / np.linalg.norm(prefix, axis=1) for prefix in prefixes]
    queries = [gates[: layer + 1].reshape(-1) for layer in layers]

    def iteration():
        for prefix, inverse, query in zip(prefixes, norms, queries, strict=True):
            scores = prefix @ query
            scores *= inverse
            scores.argmax()

    benchmark.pedantic(iteration, rounds=10, warmup_rounds=2)
    benchmark.extra_info["median_us_per_layer"] = round(benchmark.stats.stats.median / len(prefixes) * 1e6, 2)


@pytest.mark.parametrize("hidden", [64, 2048])
def test_store_of_32k_maps_of_the_qwen_geometry(benchmark, hidden):
    """Bytes held, as allocated."""
    store = benchmark.pedantic(ExpertMapStore, (24, 60, hidden, 32768), rounds=1)
    arrays = (store.map_codes, store.embedding_codes, store.inverse_prefix_norms, store.inverse_embedding_norms)
    benchmark.extra_info["megabytes"] = sum(array.nbytes for array in arrays) / 1e6
