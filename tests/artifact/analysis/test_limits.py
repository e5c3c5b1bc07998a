"""The analytical checks of validate_simulator, on made-up routing of a published model's sizes."""

import numpy as np

from finemoe.artifact.analysis.limits import analytical_checks
from finemoe.simulation.synthetic import Recipe, synthetic_trace


def test_the_simulator_meets_every_formula():
    trace = synthetic_trace(Recipe(0.2, 0.3, 0.4, 8), 32, 8, 2, num_requests=2, tokens_per_request=6)
    table = analytical_checks(trace)
    assert len(table) == 7
    np.testing.assert_allclose(table.error, 0.0, atol=1e-5)
