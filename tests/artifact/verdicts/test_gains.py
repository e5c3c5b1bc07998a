"""FineMoE's gains over the baselines, and how the exceptions are put into words."""

import numpy as np
import pandas as pd
import pytest

from finemoe.artifact.verdicts.gains import REPORTED_GAINS, against_on_demand, exceptions_in, gains_table
from finemoe.artifact.verdicts.kinds import panel_of, panels_of
from tests.artifact.tables import requests


def test_a_gain_is_what_a_loop_counts():
    table = requests(FineMoE=[0.1, 0.2, 0.3], ProMoE=[0.2, 0.3, 0.4]).assign(model="mixtral-mini", dataset="questions")
    table["hits"] = [8, 8, 8, 4, 5, 6]
    gains = gains_table(table).set_index("quantity")
    steps = [10, 11, 12]
    ours, theirs = (sum(s * n for s, n in zip(values, steps, strict=True)) for values in ([0.1, 0.2, 0.3], [0.2, 0.3, 0.4]))
    assert gains.gain["tpot_s"] == pytest.approx(1 - ours / theirs)
    assert gains.gain["ttft_s"] == pytest.approx(1 - 1.2 / 1.8)
    assert gains.gain["hit_rate"] == pytest.approx(24 / 15 - 1)
    assert ((gains.low <= gains.gain) & (gains.gain <= gains.high)).all()
    assert gains.reported.to_dict() == {quantity: REPORTED_GAINS[quantity]["ProMoE"] for quantity in gains.index}


def test_gains_of_what_was_not_recorded_have_no_row():
    table = requests(FineMoE=[0.1] * 3, ProMoE=[0.2] * 3).assign(ttft_s=np.nan, model="gpt-oss-20b", dataset="mixed")
    gains = gains_table(table)
    assert set(zip(gains.quantity, gains.baseline, strict=True)) == {("tpot_s", "ProMoE"), ("hit_rate", "ProMoE")}


def test_the_floor_is_loading_on_demand():
    table = requests(FineMoE=[0.1] * 3, on_demand=[0.2] * 3).assign(model="gpt-oss-20b", dataset="mixed")
    assert against_on_demand(table).endswith("FineMoE's TPOT changes by -50% on gpt-oss-20b.")


def test_real_routing_is_a_panel_where_there_is_any():
    table = pd.DataFrame({"model": ["mixtral-mini", "qwen-mini", "gpt-oss-20b"]})
    assert [(name, len(part)) for name, part in panels_of(table)] == [("miniatures", 2), ("gpt-oss-20b", 1)]
    assert panel_of(table).startswith("gpt-oss-20b")
    assert [name for name, _ in panels_of(table[:2])] == ["miniatures"]
    assert panel_of(table[:2]) == "miniatures only"


def test_exceptions_are_counted():
    behind = pd.DataFrame({"baseline": ["ProMoE"] * 2, "quantity": ["tpot_s"] * 2, "model": ["qwen-mini"] * 2})
    assert exceptions_in(behind) == "Not behind FineMoE: ProMoE in TPOT on qwen-mini (2)."
    assert exceptions_in(behind[:0]) == "No exception."
