"""Weighted neighbours against a plain sum, and the cross-check of DESIGN 4 on real routing."""

import numpy as np
import pytest

from finemoe.artifact.analysis.recalls import INDEPENDENT, recall_table, weighted_nearest
from finemoe.importers.gpt_oss import load_gpt_oss, sample_path


def test_neighbours_weigh_by_their_similarity():
    rng = np.random.default_rng(0)
    scores, guides = rng.uniform(0.5, 1, size=(3, 20)).astype(np.float32), rng.dirichlet(np.ones(5), size=20)
    found = weighted_nearest(scores, guides, num_neighbours=4)
    for row in range(3):
        nearest = sorted(range(20), key=lambda record: -scores[row, record])[:4]
        weights = np.exp(20.0 * scores[row, nearest].astype(float))
        expected = sum(weight * guides[record] for weight, record in zip(weights, nearest, strict=True)) / weights.sum()
        np.testing.assert_allclose(found[row], expected, rtol=1e-4)


@pytest.mark.skipif(not sample_path().is_file(), reason="the public gpt-oss-20b sample is not beside the checkout")
def test_recalls_agree_with_an_independent_computation():
    trace = load_gpt_oss(sample_path())
    table = recall_table(trace.split("history"), trace.split("served"), num_rows=400).set_index("method").recall
    for method, expected in INDEPENDENT.items():
        assert table[method] == pytest.approx(expected, abs=0.03), method
