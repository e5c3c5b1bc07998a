"""The Expert Map Store against the formulas written out with plain arrays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finemoe.errors import FinemoeError
from finemoe.maps.store import ExpertMapStore


def records(seed: int, count: int, layers: int = 4, experts: int = 6, dim: int = 5):
    rng = np.random.default_rng(seed)
    maps = rng.dirichlet(np.full(experts, 0.4), size=(count, layers)).astype(np.float32)
    return maps, rng.normal(size=(count, dim)).astype(np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.reshape(-1).astype(np.float64), b.reshape(-1).astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def naive_fill(maps, embeddings, capacity, distance):
    """Keep a list; when it is full, replace the record of greatest RDY (section 4.4), one new record after the other."""
    kept = []
    for new_map, new_embedding in zip(maps, embeddings, strict=True):
        if len(kept) < capacity:
            kept.append((new_map, new_embedding))
            continue
        share = distance / maps.shape[1]
        rdy = [share * cosine(e, new_embedding) + (1 - share) * cosine(m, new_map) for m, e in kept]
        kept[int(np.argmax(rdy))] = (new_map, new_embedding)
    return kept


def test_stored_maps_are_the_given_ones_to_half_a_step():
    maps, embeddings = records(0, 7)
    store = ExpertMapStore(4, 6, 5, capacity=10)
    store.add(maps, embeddings)
    assert len(store) == 7
    np.testing.assert_allclose(store.maps(), maps, atol=0.51 / 65535)
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    np.testing.assert_allclose(store.embeddings(), units, atol=0.51 / 32767)


def test_a_stored_map_row_sums_to_one():
    maps, embeddings = records(1, 50)
    store = ExpertMapStore(4, 6, 5, capacity=50)
    store.add(maps, embeddings)
    np.testing.assert_allclose(store.maps().sum(axis=-1), 1.0, atol=6 * 0.5 / 65535 + 1e-6)


def test_redundancy_is_the_weighted_sum_of_both_cosines():
    maps, embeddings = records(2, 9)
    store = ExpertMapStore(4, 6, 5, capacity=8, prefetch_distance=3)
    store.add(maps[:8], embeddings[:8])
    unit = embeddings[8] / np.linalg.norm(embeddings[8])
    expected = [
        0.75 * cosine(e, embeddings[8]) + 0.25 * cosine(m, maps[8]) for m, e in zip(maps[:8], embeddings[:8], strict=True)
    ]
    np.testing.assert_allclose(store.redundancy(maps[8], unit), expected, atol=1e-4)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 4))
def test_replacement_follows_a_naive_twin(seed, capacity, distance):
    maps, embeddings = records(seed, 20)
    store = ExpertMapStore(4, 6, 5, capacity, distance)
    for begin in (0, 3, 11):  # batches enter one record after the other
        store.add(
            maps[begin : begin + (3 if begin == 0 else 8 if begin == 3 else 9)],
            embeddings[begin : begin + (3 if begin == 0 else 8 if begin == 3 else 9)],
        )
        assert len(store) <= capacity
    kept = naive_fill(maps, embeddings, capacity, distance)
    np.testing.assert_allclose(store.maps(), np.stack([m for m, _ in kept]), atol=1e-5)


def test_without_embeddings_redundancy_rests_on_the_maps():
    maps, _ = records(3, 4)
    store = ExpertMapStore(4, 6, 0, capacity=3)
    store.add(maps[:3])
    expected = [cosine(m, maps[3]) for m in maps[:3]]
    np.testing.assert_allclose(store.redundancy(maps[3], np.zeros(0, dtype=np.float32)), expected, atol=1e-4)


def test_nearest_embedding_is_the_greatest_cosine():
    maps, embeddings = records(4, 30)
    store = ExpertMapStore(4, 6, 5, capacity=30)
    store.add(maps, embeddings)
    _, queries = records(5, 12)
    found, scores = store.nearest_embeddings(queries)
    table = np.array([[cosine(q, e) for e in embeddings] for q in queries])
    assert found.tolist() == table.argmax(axis=1).tolist()
    np.testing.assert_allclose(scores, table.max(axis=1), atol=1e-4)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.integers(1, 25))
def test_save_and_load_is_identity(tmp_path_factory, seed, capacity):
    path = tmp_path_factory.mktemp("store") / "a.store"
    maps, embeddings = records(seed, 20)
    store = ExpertMapStore(4, 6, 5, capacity, model="m-1")
    store.add(maps, embeddings)
    store.save(path)
    loaded = ExpertMapStore.load(path, model="m-1")
    for name in ("map_codes", "embedding_codes", "inverse_prefix_norms", "inverse_embedding_norms"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(store, name))
    first = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == first


def test_another_models_store_is_refused(tmp_path):
    store = ExpertMapStore(4, 6, 5, model="mixtral-1")
    store.save(tmp_path / "a.store")
    with pytest.raises(FinemoeError, match="holds maps of 'mixtral-1', not of 'qwen-2'"):
        ExpertMapStore.load(tmp_path / "a.store", model="qwen-2")


def test_a_truncated_store_is_refused(tmp_path):
    path = tmp_path / "a.store"
    maps, embeddings = records(6, 10)
    store = ExpertMapStore(4, 6, 5)
    store.add(maps, embeddings)
    store.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FinemoeError, match="truncated"):
        ExpertMapStore.load(path)


def test_a_flipped_bit_is_refused(tmp_path):
    path = tmp_path / "a.store"
    store = ExpertMapStore(4, 6, 5)
    store.add(*records(6, 10))
    store.save(path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(bytes(content))
    with pytest.raises(FinemoeError, match="does not match its checksum"):
        ExpertMapStore.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda maps: maps[:, :3], r"maps must be \[n, 4, 6\]"),
        (lambda maps: maps * 0.5, "not a distribution"),
        (lambda maps: maps * np.nan, "not a distribution"),
        (lambda maps: maps + np.array([0.5, -0.5, 0, 0, 0, 0]), "not a distribution"),
    ],
)
def test_bad_maps_are_refused(change, message):
    maps, embeddings = records(7, 2)
    with pytest.raises(FinemoeError, match=message):
        ExpertMapStore(4, 6, 5).add(change(maps), embeddings)


def test_store_memory_is_two_bytes_a_value():
    store = ExpertMapStore(24, 60, 64, capacity=1024)
    values = 1024 * (24 * 60 + 64) * 2
    norms = 1024 * (24 + 1) * 4
    assert store.nbytes == values + norms


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**-10, 2.0**100])
def test_an_embedding_of_any_length_has_its_direction(scale):
    maps, embeddings = records(8, 4)
    plain, scaled = ExpertMapStore(4, 6, 5), ExpertMapStore(4, 6, 5)
    plain.add(maps, embeddings)
    scaled.add(maps, embeddings * np.float32(scale))
    np.testing.assert_array_equal(scaled.embedding_codes, plain.embedding_codes)
    np.testing.assert_allclose(scaled.nearest_embeddings(embeddings * np.float32(scale))[1], 1, atol=1e-4)


def test_an_empty_store_has_no_nearest_record():
    with pytest.raises(FinemoeError, match="the store is empty"):
        ExpertMapStore(4, 6, 5).nearest_embeddings(np.ones((1, 5)))


@pytest.mark.parametrize("capacity", [10**15, 10**30])
def test_more_records_than_memory_holds_are_refused(capacity):
    with pytest.raises(FinemoeError, match=r"capacity is 10+: not enough memory"):
        ExpertMapStore(32, 64, 64, capacity)
