"""What the notebooks of a run cost, as one row for each rule."""

from pathlib import Path

import pytest

pytest.importorskip("pandas")

from finemoe.artifact.docs.costs import cost_numbers, costs_table

_HEAD = "wall_s\tcpu_s\tmax_rss_mb\n"


def test_jobs_of_a_rule_are_added_up_and_the_largest_process_counts(tmp_path: Path) -> None:
    (tmp_path / "f4.tsv").write_text(f"{_HEAD}3\t2\t100\n", encoding="utf-8")
    for testbed, row in (("a", "10\t5\t300"), ("b", "20\t7\t200")):
        path = tmp_path / "simulate_testbed" / testbed / "one.tsv"
        path.parent.mkdir(parents=True)
        path.write_text(f"{_HEAD}{row}\n", encoding="utf-8")

    table = costs_table(tmp_path, "make smoke", "a machine")

    assert table.values.tolist() == [
        ["f4", 1, 2, 3, 100, "make smoke", "a machine"],
        ["simulate_testbed", 2, 12, 30, 300, "make smoke", "a machine"],
    ]


def test_every_rule_has_a_number() -> None:
    names = {number.name for number in cost_numbers()}

    assert {"cpu_f4", "cpu_simulate_testbed", "cpu_run", "cpu_machine"} <= names
