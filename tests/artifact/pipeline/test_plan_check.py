"""How plans are compared with measurements; the measurement itself with one small cell."""

import numpy as np
import pandas as pd
import pytest

from finemoe.artifact.pipeline.plan_check import Cell, check_rows
from finemoe.planning.choices import room_bytes
from finemoe.planning.place import Place
from finemoe.simulation.testbed import Testbed


def table(planned_s, measured_s, planned_bytes=100, measured_bytes=100):
    rows = [
        {"model": "a", "load_ms": 1.0, "share": 0.5, "policy": "on-demand", "planned_tpot_s": one, "measured_tpot_s": other}
        for one, other in zip(planned_s, measured_s, strict=True)
    ]
    return pd.DataFrame(rows).assign(planned_bytes=planned_bytes, measured_bytes=measured_bytes)


def test_medians_over_rounds_are_compared():
    (row,) = check_rows(table([0.1, 0.1, 0.9], [0.11, 0.11, 0.11])).itertuples()
    assert (row.planned_tokens_per_s, row.measured_tokens_per_s) == pytest.approx((10, 1 / 0.11))
    assert row.error == pytest.approx(0.1)
    assert row.is_within


@pytest.mark.parametrize(("measured_s", "planned_bytes"), [(0.12, 100), (0.08, 100), (0.1, 104)])
def test_both_bars_count(measured_s, planned_bytes):
    (row,) = check_rows(table([0.1], [measured_s], planned_bytes)).itertuples()
    assert not row.is_within


def test_a_cells_memory_holds_its_share_of_the_experts():
    cell = Cell("phi-mini", 4.0, 0.25)
    testbed = Testbed.load("laptop-8gb").__class__(**{**vars(Testbed.load("laptop-8gb")), "memory_bytes": cell.memory_bytes})
    room = room_bytes(cell.model, Place(testbed, None, True, False), 128)
    assert cell.model.slots_in(room) == round(0.25 * cell.model.num_experts)
    rate = float(cell.link.removeprefix("paced:").removesuffix("B/s"))
    assert np.isclose(cell.model.slot_bytes / rate, 0.004)
