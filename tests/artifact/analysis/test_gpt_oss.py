"""The command that computes the real panels' tables, on routing of the publisher's shape."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from finemoe.artifact.analysis import gpt_oss
from finemoe.artifact.analysis.gpt_oss import write_tables
from finemoe.artifact.analysis.prediction import METHODS
from finemoe.importers.gpt_oss import load_gpt_oss

pytestmark = pytest.mark.timeout(300)  # every table is computed


@pytest.fixture
def arrays(tmp_path):
    """A file of ten requests."""
    rng = np.random.default_rng(0)
    ids = np.stack([rng.permutation(32)[:4] for _ in range(40 * 24)]).reshape(40, 24, 4)
    probs = rng.dirichlet(np.ones(4), size=(40, 24))
    np.savez(tmp_path / "trace.npz", expert_ids=ids, expert_probs=probs, offsets=np.arange(0, 41, 4))
    return tmp_path / "trace.npz"


def test_a_trace_is_read_like_the_file_that_it_was_made_of(arrays, tmp_path, monkeypatch):
    expected = load_gpt_oss(arrays)
    expected.save(tmp_path / "made.trace")
    read = []
    monkeypatch.setattr(gpt_oss, "reference_tables", lambda routing, capacity: read.append(routing) or {})
    write_tables(tmp_path / "made.trace", tmp_path)
    np.testing.assert_array_equal(read[0].expert_ids, expected.expert_ids)
    assert read[0].splits == expected.splits


def test_every_table_is_made(arrays, tmp_path):
    write_tables(arrays, tmp_path, store_capacity=20)
    tables = {path.name.removesuffix("_gpt_oss.csv"): pd.read_csv(path) for path in tmp_path.glob("*.csv")}
    counted, timed = {"f4", "f14a", "f14b", "compare_systems", "disagreement"}, {"simulated", "f15", "disagreement"}
    assert set(tables) == counted | timed | {"statistics", "coverage"}
    for name, table in tables.items():
        assert (set(table.model), set(table.dataset)) == ({"gpt-oss-20b"}, {"mixed"})
        assert name not in counted or table.hit_rate.between(0, 1).all()
        assert name not in timed or (table.tpot_s > 0).all()
    assert tables["coverage"].wanted.tolist() == [2 * 24 * 32, round(0.5 * 24 * 32 * np.log(24 * 32))]
    assert set(tables["simulated"].testbed) == {"6x-rtx3090", "a100-80gb"}
    without_routers = set(METHODS) - {"routers ahead"}
    assert set(zip(tables["f4"].method, tables["f4"].distance, strict=True)) == set(product(without_routers, range(1, 9)))
    assert set(tables["f14a"].system) == {"on-demand (LRU)", "Learn", "Hit count", "Map (T)", "Belady (on demand)"}
