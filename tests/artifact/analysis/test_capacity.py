"""Similarity against capacity, the breakdown of an iteration and scale, on small routing."""

import numpy as np
import pytest

from finemoe.artifact.analysis.capacity import similarity_table
from finemoe.artifact.analysis.modelled_breakdown import modelled_breakdown
from finemoe.artifact.analysis.scale import scale_table, store_table
from finemoe.maps.store import ExpertMapStore
from finemoe.simulation.cost import size_named
from finemoe.simulation.synthetic import Recipe, synthetic_trace
from finemoe.traces import RoutingTrace
from tests.simulation.golden import FILE

pytestmark = pytest.mark.timeout(300)  # hundreds of replays

RECIPE = Recipe(0.2, 0.3, 0.4, 8)
TRACE = RoutingTrace.load(FILE)
MIXTRAL = synthetic_trace(RECIPE, 32, 8, 2, num_requests=10, tokens_per_request=8)


def test_similarity_is_the_best_cosine_of_whole_prefixes():
    """A store that holds every map of the history, searched by brute force."""
    history, served = TRACE.split("history"), TRACE.split("served")
    table = similarity_table(history, served, [1000], prefetch_distance=1).set_index("search")
    maps, embeddings = history.maps().astype(np.float64), history.embeddings()
    cosine = lambda a, b: (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)[None]  # noqa: E731
    per_request, semantic = [], []
    for request in range(served.num_requests):
        rows = np.arange(*served.offsets[[request, request + 1]])[served.phase[served.rows_of(request)] == 1]
        prefixes = [
            cosine(served.maps(rows)[:, : layer + 1].reshape(len(rows), -1), maps[:, : layer + 1].reshape(len(maps), -1)).max(
                axis=1
            )
            for layer in range(3)
        ]
        per_request.append(np.mean(prefixes, axis=0).mean())
        semantic.append(cosine(served.embeddings(rows), embeddings).max(axis=1).mean())
    assert table.similarity["trajectory"] == pytest.approx(np.mean(per_request), abs=2e-3)
    assert table.similarity["semantic"] == pytest.approx(np.mean(semantic), abs=2e-3)
    assert table.records["semantic"] == history.num_rows


def test_the_parts_of_an_iteration_add_up():
    history, served = MIXTRAL.split("history"), MIXTRAL.split("served")
    parts = modelled_breakdown(history, served, "6x-rtx3090", 0.25, prefetch_distance=3)
    assert all(value > 0 for value in parts.values())


def test_scale_takes_less_of_the_experts_where_they_do_not_fit():
    table = scale_table("qwen3-235b-a22b", RECIPE, "h200", [1, 8], expert_memory=0.5, num_tokens=12)
    size = size_named("qwen3-235b-a22b")
    one, eight = (table[table.devices == count].expert_memory.iloc[0] for count in (1, 8))
    assert eight == 0.5
    assert one * size.all_experts_bytes + size.resident_bytes <= 141e9
    assert set(table.system) == {"FineMoE", "on-demand (LRU)", "oracle"}


def test_the_store_s_memory_is_that_of_a_real_one():
    table = store_table(["qwen3-235b-a22b"], [50], "h200")
    size = size_named("qwen3-235b-a22b")
    store = ExpertMapStore(size.num_layers, size.num_experts, size.hidden_size, 50)
    assert table.store_mb[0] == pytest.approx(store.nbytes / 1e6)
    assert table.capacity.tolist() == [50, 2 * 94 * 128, round(0.5 * 94 * 128 * np.log(94 * 128))]
