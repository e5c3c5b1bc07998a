"""The claim on the models' sizes (Table 1), on made-up sizes and on the shipped table."""

import pandas as pd
import pytest

from finemoe.artifact.figures.t1 import REPORTED, parameter_table
from finemoe.artifact.verdicts.geometry import geometry_claim, geometry_tests
from finemoe.paths import REFERENCE_FIGURES
from tests.artifact.verdicts.shipped import outcome, shipped_claim

COLUMNS = ("model", "active_params", "total_params", "num_experts", "experts_per_token", "num_layers")
AS_PRINTED = (
    ("mixtral-8x7b", 12_900_000_000, 46_700_000_000, 8, 2, 32),
    ("qwen1.5-moe-a2.7b", 2_700_000_000, 14_300_000_000, 60, 4, 24),
    ("phi-3.5-moe", 6_600_000_000, 42_000_000_000, 16, 2, 32),
)


def geometry(**of_phi: int) -> pd.DataFrame:
    """The printed sizes, but for these of Phi-3.5-MoE."""
    table = pd.DataFrame(AS_PRINTED, columns=COLUMNS)
    for column, value in of_phi.items():
        table.loc[table.model == "phi-3.5-moe", column] = value
    return table


def test_the_printed_sizes_hold():
    tests = geometry_tests(parameter_table(geometry()))
    assert tests.to_numpy().all()
    assert tests.index.tolist() == list(REPORTED.index)
    assert geometry_claim(parameter_table(geometry())).verdict == "holds"


@pytest.mark.parametrize(
    ("column", "value", "flag"),
    [
        ("active_params", 6_700_000_000, "active"),
        ("total_params", 43_000_000_000, "total"),
        ("num_experts", 17, "experts"),
        ("experts_per_token", 4, "experts"),
        ("num_layers", 31, "layers"),
    ],
)
def test_one_number_off_holds_weaker_and_is_named(column, value, flag):
    table = parameter_table(geometry(**{column: value}))
    false = geometry_tests(table).loc["phi-3.5-moe"]
    assert false[~false.astype(bool)].index.tolist() == [flag, "agrees"]
    claim = geometry_claim(table)
    assert claim.verdict == "holds weaker"
    assert claim.reproduced.startswith("decided by every printed digit: 2 of 3 (all three models); ")


@pytest.mark.parametrize(("params", "agrees"), [(41_500_000_001, True), (41_499_999_999, False), (42_499_999_999, True)])
def test_digits_are_rounded_as_printed(params, agrees):
    """The paper prints 42 for Phi-3.5-MoE, so every count that rounds to 42 agrees."""
    assert geometry_tests(parameter_table(geometry(total_params=params))).total["phi-3.5-moe"] == agrees


def test_the_share_of_idle_parameters_is_of_the_total():
    idle = parameter_table(geometry()).set_index("model").idle_percent
    assert idle["mixtral-8x7b"] == pytest.approx(100 * (46.7 - 12.9) / 46.7)


def test_table_1_is_the_shipped_claim():
    printed = dict.fromkeys(("active_reported_b", "total_reported_b", "active_rounded", "total_rounded"), str)
    table = pd.read_csv(REFERENCE_FIGURES / "t1.csv", dtype=printed)
    assert outcome(geometry_claim(table)) == shipped_claim("T1")
