"""The command that computes Figure 4's real panel, on routing of the publisher's shape."""

import numpy as np
import pandas as pd

from finemoe.analysis.gpt_oss import write_table
from finemoe.analysis.prediction import METHODS


def test_every_method_is_tabled_at_every_distance(tmp_path):
    rng = np.random.default_rng(0)
    ids = np.stack([rng.permutation(32)[:4] for _ in range(40 * 10)]).reshape(40, 10, 4)
    probs = rng.dirichlet(np.ones(4), size=(40, 10))
    np.savez(tmp_path / "trace.npz", expert_ids=ids, expert_probs=probs, offsets=np.arange(0, 41, 4))
    write_table(tmp_path / "trace.npz", tmp_path / "table.csv", store_capacity=20)
    table = pd.read_csv(tmp_path / "table.csv")
    assert sorted(zip(table.method, table.distance, strict=True)) == sorted(
        (name, distance) for name in METHODS for distance in range(1, 9)
    )
    assert (set(table.model), set(table.dataset)) == ({"gpt-oss-20b"}, {"mixed"})
    assert table.hit_rate.between(0, 1).all()
