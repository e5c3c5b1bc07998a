"""Advice survives JSON and tables, with what does not exist in either."""

import json
import math

import pytest

from finemoe.advice.sentences import sentences
from finemoe.artifact.advice.gallery_tables import read_advice, write_advice
from finemoe.artifact.advice.tables import advice_of
from finemoe.errors import FinemoeError
from tests.artifact.advice.made_up import make_advice


def without_nan(value):
    """As `finemoe advise --json` prints it."""
    if isinstance(value, dict):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


@pytest.mark.parametrize("machine", [True, False])
@pytest.mark.parametrize("intervals", [True, False])
def test_json_and_back(machine, intervals):
    advice = make_advice(machine=machine, intervals=intervals)
    plain = without_nan(advice.to_dict())
    again = advice_of(json.loads(json.dumps(plain, allow_nan=False)))
    assert without_nan(again.to_dict()) == plain
    assert sentences(again) == sentences(advice)


def test_tables_and_back(tmp_path):
    found = {
        ("one", "laptop"): make_advice(),
        ("one", "server"): make_advice(warnings=[]),
        ("two", "laptop"): make_advice(intervals=False),
    }
    write_advice(found, tmp_path)
    again = read_advice(tmp_path)
    assert list(again) == list(found)
    for key, advice in found.items():
        assert sentences(again[key]) == sentences(advice)
        plain, other = without_nan(advice.to_dict()), without_nan(again[key].to_dict())
        assert flat(other) == pytest.approx(flat(plain), rel=1e-5)
    lines = (tmp_path / "hit_rates.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * len(make_advice().hit_rates)  # once a trace


def flat(value, path: str = "") -> dict:
    """Every leaf by its path; texts and None by their own name, so that they compare exactly."""
    if isinstance(value, dict):
        return {key: leaf for name, item in value.items() for key, leaf in flat(item, f"{path}/{name}").items()}
    if isinstance(value, list):
        return {key: leaf for place, item in enumerate(value) for key, leaf in flat(item, f"{path}/{place}").items()}
    return {path: value} if isinstance(value, int | float) else {f"{path}={value}": 0}


def test_missing_tables_are_one_line(tmp_path):
    with pytest.raises(
        FinemoeError, match=r"facts\.json: no such table; `python -m finemoe\.artifact\.advice\.gallery` makes it"
    ):
        read_advice(tmp_path)
