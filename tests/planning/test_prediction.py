"""Predicted times against formulas, and what must hold of every curve."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from finemoe.paths import DATA
from finemoe.planning.calibration import Calibration, calibrated, resident_step_s
from finemoe.planning.choices import MISS_ERROR, SYSTEMS
from finemoe.planning.loaded import LoadedModel
from finemoe.planning.prediction import Prepared, curves, prompt_s
from finemoe.planning.routing import RECIPES, assumed_routings
from finemoe.simulation.cost import CostModel, ModelSize
from finemoe.simulation.testbed import Testbed

LAYERS, EXPERTS, TOP_K = 6, 16, 2
SIZE = ModelSize("small", LAYERS, EXPERTS, TOP_K, 64, 1_000_000, 200_000, 100_000, 100_000_000, 64, 256)
BED = replace(Testbed.load("laptop-8gb"), hits_first=1, hand_over_s=0.0)
MODEL = LoadedModel("small", "", "bf16", None, None, 2_000_000, 0, 192_000_000, 8_000_000, 1000, None, SIZE)


@pytest.fixture(scope="module")
def prepared():
    return Prepared.of(assumed_routings(LAYERS, EXPERTS, TOP_K)[0])


@pytest.fixture(scope="module")
def found(prepared):
    return curves(prepared, BED, SIZE, SYSTEMS)


def test_more_memory_is_never_slower_and_hits_no_less(found):
    for curve in found.values():
        assert (np.diff(curve.tpot_s) <= 0).all()
        assert (np.diff(curve.hit_rate) >= 0).all()
        assert curve.at(LAYERS * EXPERTS)[1] == 1.0


def test_with_all_experts_in_memory_a_step_is_its_arithmetic(found):
    expected = resident_step_s(CostModel(SIZE, BED))
    assert found["on-demand"].at(LAYERS * EXPERTS)[0] == pytest.approx(expected, rel=0.01)  # contexts differ a little


def test_with_the_fewest_slots_every_expert_is_loaded(found):
    """LRU hits nothing; in a layer, loads follow one another, and only the last expert is computed after them."""
    cost, one = CostModel(SIZE, BED), np.ones(1)
    layer_s = float(cost.before_experts(one, one, one)[0]) + TOP_K * cost.load() + float(cost.expert(one)[0])
    assert found["on-demand"].at(TOP_K)[0] == pytest.approx(LAYERS * layer_s + cost.head(), rel=0.01)


def test_between_sizes_times_are_interpolated(found):
    curve = found["on-demand"]
    low, high = curve.slots[3], curve.slots[4]
    assert high - low > 1
    assert curve.tpot_s[4] <= curve.at(int(low + high) // 2)[0] <= curve.tpot_s[3]


def test_a_calibrated_step_takes_the_measured_time(prepared):
    measured = Calibration({"on-demand": 0.020, "finemoe-plus": 0.025}, waiting_s=0.020 + LAYERS * (TOP_K * 0.004 + 0.0005),
                           load_s=0.004, prefetch_s=0.0045)  # fmt: skip
    bed = replace(BED, link_bytes_per_s=MODEL.slot_bytes / 0.004, host_bytes_per_s=1e12)
    changed, size, wake_s = calibrated(bed, MODEL, measured, "on-demand")
    curve = curves(prepared, changed, size, {"on-demand": SYSTEMS["on-demand"]}, wake_s=wake_s)["on-demand"]
    assert curve.at(LAYERS * EXPERTS)[0] == pytest.approx(0.020, rel=0.01)
    assert curve.at(TOP_K)[0] == pytest.approx(measured.waiting_s, rel=0.01)


def test_a_prompt_takes_its_loads_or_its_arithmetic():
    cost = CostModel(SIZE, replace(BED, link_bytes_per_s=1e6, host_bytes_per_s=1e6))
    loads_s = LAYERS * EXPERTS * cost.load()
    assert prompt_s(cost, 1000, 0.0) == pytest.approx(loads_s, rel=0.01)
    assert prompt_s(cost, 1000, 0.5) == pytest.approx(loads_s / 2, rel=0.01)
    assert prompt_s(cost, 1000, 1.0) < loads_s / 1000


def test_assumed_routing_is_as_far_from_other_models_as_stated():
    table = pd.read_csv(DATA / "reference" / "assumed_routing.csv")
    for name, recipe in RECIPES.items():
        row = table[table.recipe == name].iloc[0]
        assert (row.popular, row.requested, row.persistence, row["rank"]) == tuple(vars(recipe).values())
    others = table[(table.trace != table.recipe) & table.expert_memory.between(0.05, 0.6) & (table.hit_rate > 0)]
    errors = ((1 - others.assumed_hit_rate) / (1 - others.hit_rate) - 1).abs()
    assert errors.quantile(0.9) <= MISS_ERROR
