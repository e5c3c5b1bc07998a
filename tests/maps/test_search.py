"""Incremental prefix cosines against Eq. 5 computed from whole prefixes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finemoe.errors import FinemoeError
from finemoe.maps.kernels import accumulate_dots, accumulate_dots_of_rows, nearest_neighbour
from finemoe.maps.search import TrajectorySearch, guide
from finemoe.maps.store import ExpertMapStore


def filled_store(rng: np.random.Generator, layers: int, experts: int, count: int) -> ExpertMapStore:
    store = ExpertMapStore(layers, experts, 0, capacity=count + 3, prefetch_distance=1)
    store.add(rng.dirichlet(np.full(experts, 0.3), size=(count, layers)).astype(np.float32))
    return store


def whole_prefix_cosines(stored: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Eq. 5: stored [C, m, J], observed [B, m, J] -> [B, C]."""
    a = stored.reshape(len(stored), -1).astype(np.float64)
    b = observed.reshape(len(observed), -1).astype(np.float64)
    return (b @ a.T) / np.linalg.norm(b, axis=1)[:, None] / np.linalg.norm(a, axis=1)[None, :]


_SCORES = st.sampled_from([-3e38, -1.0, -0.5, -1e-40, -0.0, 0.0, 1e-40, 0.25, 0.5, 1.0, 3e38])


@given(st.lists(st.tuples(_SCORES, st.sampled_from([0.5, 1.0])), min_size=1, max_size=70))
def test_the_nearest_is_the_first_of_the_greatest_products(pairs):
    dots, norms = np.array(pairs, dtype=np.float32).T.copy()
    products = dots * norms
    neighbour, value = nearest_neighbour(dots, norms, len(pairs))
    assert (neighbour, value) == (np.flatnonzero(products == products.max())[0], products.max())


def test_of_no_records_none_is_near():
    assert nearest_neighbour(np.zeros(4, dtype=np.float32), np.ones(4, dtype=np.float32), 0) == (0, 0)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 7), st.integers(2, 19), st.integers(1, 40), st.integers(1, 5))
def test_every_prefix_agrees_with_the_whole_prefix_cosine(seed, layers, experts, count, rows):
    rng = np.random.default_rng(seed)
    store = filled_store(rng, layers, experts, count)
    observed = rng.dirichlet(np.full(experts, 0.3), size=(rows, layers)).astype(np.float32)
    search = TrajectorySearch(store, rows)
    for layer in range(layers):
        search.observe(layer, np.ascontiguousarray(observed[:, layer]))
        neighbours, scores = search.nearest()
        table = whole_prefix_cosines(store.maps()[:, : layer + 1], observed[:, : layer + 1])
        np.testing.assert_allclose(scores, table.max(axis=1), atol=2e-6)
        np.testing.assert_allclose(table[np.arange(rows), neighbours], table.max(axis=1), atol=2e-6)
        np.testing.assert_array_equal(guide(store, neighbours, layer), store.maps()[neighbours, layer])


def test_a_stored_map_finds_itself():
    rng = np.random.default_rng(3)
    store = filled_store(rng, 5, 8, 100)
    search = TrajectorySearch(store, 1)
    for layer in range(5):
        search.observe(layer, store.maps()[42:43, layer])
    neighbours, scores = search.nearest()
    assert neighbours.tolist() == [42]
    assert scores[0] == pytest.approx(1.0, abs=1e-6)


def test_misuse_is_named():
    store = filled_store(np.random.default_rng(0), 3, 4, 5)
    search = TrajectorySearch(store, 2)
    with pytest.raises(FinemoeError, match="nothing to search"):
        search.nearest()
    with pytest.raises(FinemoeError, match="layer 1 observed after 0 layers"):
        search.observe(1, np.full((2, 4), 0.25, dtype=np.float32))
    with pytest.raises(FinemoeError, match=r"gate output must be \(2, 4\)"):
        search.observe(0, np.full((1, 4), 0.25, dtype=np.float32))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 23), st.integers(1, 70), st.integers(1, 9))
def test_a_sparse_row_s_products_are_the_same_bits_whichever_rows_are_beside_it(seed, components, count, rows):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 65536, size=(components, count)).astype(np.uint16)
    weights = rng.random((rows, components), dtype=np.float32) * (rng.random((rows, components)) < 0.2)
    together, alone = np.zeros((2, rows, count), dtype=np.float32)
    accumulate_dots_of_rows(codes, weights, count, together)
    for row in range(rows):
        accumulate_dots(codes, weights[row], count, alone[row])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_allclose(together, weights.astype(np.float64) @ codes, rtol=1e-5)
