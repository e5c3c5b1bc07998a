import numpy as np
import pytest

from finemoe.artifact.analysis.coverage import coverage_table, random_maps, recorded_maps, theory
from finemoe.paths import ROOT
from finemoe.traces import RoutingTrace


def best_cosines(known: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Brute force, in double precision."""
    units = [maps.reshape(len(maps), -1).astype(float) for maps in (known, new)]
    units = [maps / np.linalg.norm(maps, axis=1, keepdims=True) for maps in units]
    return (units[1] @ units[0].T).max(axis=1)


def test_the_theory_is_the_papers():
    assert theory(3, 8) == {0.75: 48, 0.98: round(0.5 * 24 * np.log(24))}
    assert theory(26, 64)[0.98] < 50_000  # what the paper says of today's models


@pytest.mark.parametrize("shape", [(1, 16), (3, 8)])
def test_what_is_covered_is_counted_as_by_brute_force(shape):
    known, new = random_maps(*shape, seed=3)
    assert known.shape[1:] == new.shape[1:] == shape
    np.testing.assert_allclose(known.sum(axis=-1), 1, atol=1e-5)
    table = coverage_table(known, new)
    for row in table.itertuples():
        best = best_cosines(known[: row.wanted], new)
        assert row.stored == row.wanted == theory(*shape)[row.promised]
        assert row.median == pytest.approx(np.median(best), abs=1e-3)
        assert row.covered == pytest.approx((best >= row.promised).mean(), abs=0.01)  # maps are stored in 16 bits


def test_the_promise_fails_for_random_maps():
    for experts in (16, 64):
        assert coverage_table(*random_maps(1, experts)).set_index("promised").covered[0.98] == 0


def test_recorded_maps_are_of_other_requests():
    trace = RoutingTrace.load(ROOT / "data" / "traces" / "qwen-mini-40x32.trace")
    known, new = recorded_maps(trace)
    history, served = (trace.split(name).maps() for name in ("history", "served"))
    assert (len(known), len(new)) == (len(history), min(500, len(served)))
    assert {one.tobytes() for one in known} == {one.tobytes() for one in history}
    assert {one.tobytes() for one in new} <= {one.tobytes() for one in served}
    assert coverage_table(known, new).stored.tolist() == [len(history)] * 2  # fewer than are wanted
