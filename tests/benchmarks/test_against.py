"""The logic of the comparison with another revision, without its clock: turns, tokens, ratios, verdicts, trees."""

import csv
import math
import subprocess
import sys
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from finemoe.intervals import Interval
from finemoe.paths import ROOT
from tests.benchmarks.against.catalogue import Material, subjects
from tests.benchmarks.against.remote import Worker
from tests.benchmarks.against.report import write
from tests.benchmarks.against.rounds import WrongTokens, measurements
from tests.benchmarks.against.subject import NEW, OLD, Bar, Measurement, Side, Subject
from tests.benchmarks.against.tree import Tree, TreeError, checked_out
from tests.benchmarks.against.verdicts import DOES_NOT, HOLDS, UNDECIDED, findings, verdict_on

PYTHON = Path(sys.executable)
AGAINST_OLD = Bar(Side(NEW, "a"), Side(OLD, "a"), 0.5)


class Scripted:
    """A worker that answers what it was given, and notes in a list that all share what it was asked."""

    def __init__(self, name, heard, tokens=(1, 2), wrong_at=None):
        self.name, self.heard, self.tokens, self.wrong_at = name, heard, list(tokens), wrong_at
        self.num_measured = 0

    def ask(self, do, **told):
        self.heard.append((self.name, do, told.get("variant")))
        if do == "prepare":
            return self.tokens
        if do == "measure":
            self.num_measured += 1
            tokens = [9] if self.num_measured == self.wrong_at else self.tokens
            return {"values": {told["variant"]: float(self.num_measured)}, "tokens": tokens}
        return None


def subject(**options):
    given = {"variants": {NEW: ("a", "b"), OLD: ("a",)}, "bars": (AGAINST_OLD,), **options}
    return Subject("something", "kind", {}, num_rounds=2, **given)


def measured(values, name="something"):
    """values: by (tree, value), one for each round."""
    return [
        Measurement(name, number, Side(*side), value) for side, series in values.items() for number, value in enumerate(series)
    ]


def test_trees_take_turns_and_every_other_round_goes_backwards():
    heard = []
    found = list(measurements(subject(), {name: Scripted(name, heard) for name in (NEW, OLD)}, 3))
    turns = [(name, variant) for name, do, variant in heard if do == "measure"]
    forwards = [(NEW, "a"), (OLD, "a"), (NEW, "b")]
    assert turns == forwards + forwards[::-1] + forwards
    assert [one.round for one in found] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [(one.side.tree, one.side.value) for one in found] == turns
    assert [do for _, do, _ in heard[:2] + heard[-2:]] == ["prepare", "prepare", "finish", "finish"]


@pytest.mark.parametrize("tree", [NEW, OLD])
@pytest.mark.parametrize("wrong_at", [1, 2])
def test_a_wrong_token_fails_it(tree, wrong_at):
    workers = {name: Scripted(name, [], wrong_at=wrong_at if name == tree else None) for name in (NEW, OLD)}
    with pytest.raises(WrongTokens, match=f"something: the {tree} tree's . generated \\[9\\], not \\[1, 2\\]"):
        list(measurements(subject(), workers, 2))


def test_trees_whose_models_differ_are_not_compared():
    heard = []
    workers = {NEW: Scripted(NEW, heard), OLD: Scripted(OLD, heard, tokens=[1, 3])}
    with pytest.raises(WrongTokens, match="old tree's eager"):
        list(measurements(subject(), workers, 2))
    assert "measure" not in [do for _, do, _ in heard]


@pytest.mark.parametrize(
    ("low", "high", "is_floor", "expected"),
    [
        (0.7, 0.9, False, HOLDS),
        (0.7, 1.0, False, HOLDS),
        (0.7, 1.1, False, UNDECIDED),
        (1.1, 1.2, False, DOES_NOT),
        (1.1, 1.2, True, HOLDS),
        (1.0, 1.2, True, HOLDS),
        (0.9, 1.2, True, UNDECIDED),
        (0.7, 0.9, True, DOES_NOT),
        (math.nan, math.nan, False, UNDECIDED),  # of a single round
        (math.nan, math.nan, True, UNDECIDED),
    ],
)
def test_a_bar_is_decided_by_the_whole_interval(low, high, is_floor, expected):
    bar = Bar(Side(NEW, "a"), Side(OLD, "a"), 1.0, is_floor)
    assert verdict_on(Interval(np.array(0.95), np.array(low), np.array(high)), bar) == expected


def test_a_ratio_without_a_limit_has_no_verdict():
    assert verdict_on(Interval(np.array(0.1), np.array(0.1), np.array(0.1)), Bar(Side(NEW, "a"), Side(OLD, "a"))) == ""


def test_ratios_are_those_of_rounds():
    """A machine that slows down from round to round slows both alike; medians of each would not know."""
    new, old = [1.0, 20.0, 300.0, 4.0, 50.0], [4.0, 50.0, 1000.0, 10.0, 200.0]
    (found,) = findings([subject()], measured({(NEW, "a"): new, (OLD, "a"): old}))
    ratios = [0.25, 0.4, 0.3, 0.4, 0.25]
    assert found.ratio.value == pytest.approx(median(ratios))
    assert min(ratios) <= found.ratio.low <= found.ratio.value <= found.ratio.high <= max(ratios)
    assert (found.above, found.below) == (1e3 * median(new), 1e3 * median(old))
    assert (found.verdict, found.num_rounds) == (HOLDS, 5)


def test_rounds_may_come_in_any_order():
    rounds = measured({(NEW, "a"): [1.0, 2.0, 3.0], (OLD, "a"): [10.0, 20.0, 30.0]})
    assert findings([subject()], rounds[::-1]) == findings([subject()], rounds)


def test_what_is_beyond_a_value_of_each_tree():
    bar = Bar(Side(NEW, "a"), Side(OLD, "a"), beyond="b")
    values = {(NEW, "a"): [3.0, 5.0, 9.0], (NEW, "b"): [2.0, 3.0, 6.0], (OLD, "a"): [9.0, 9.0, 9.0], (OLD, "b"): [5.0, 4.0, 3.0]}
    (found,) = findings([subject(bars=(bar,))], measured(values))
    assert found.ratio.value == pytest.approx(median([1 / 4, 2 / 5, 3 / 6]))
    assert (found.above, found.below) == (2e3, 5e3)


def test_nothing_is_decided_where_nothing_is_beyond_it():
    bar = Bar(Side(NEW, "a"), Side(OLD, "a"), 1.0, beyond="b")
    values = {(NEW, "a"): [3.0, 5.0], (NEW, "b"): [2.0, 3.0], (OLD, "a"): [1.0, 1.0], (OLD, "b"): [5.0, 4.0]}
    (found,) = findings([subject(bars=(bar,))], measured(values))
    assert math.isnan(found.ratio.value)
    assert found.verdict == UNDECIDED


def test_bars_of_what_was_not_measured_are_left_out():
    assert findings([subject()], measured({(NEW, "a"): [1.0]})) == []


def test_a_mean_over_cells_is_geometric_and_of_each_round():
    bar = Bar(Side(NEW, "a"), Side(OLD, "a"), 0.85)
    cells = [
        Subject(name, "kind", {}, {NEW: ("a",), OLD: ("a",)}, 3, means={"all": bar}, bars=()) for name in ("one", "two", "absent")
    ]
    ratios = {"one": [0.5, 0.6, 0.7], "two": [2.0, 1.0, 0.5]}
    rounds = [one for name, series in ratios.items() for one in measured({(NEW, "a"): series, (OLD, "a"): [1.0, 1.0, 1.0]}, name)]
    (found,) = findings(cells, rounds)
    by_round = [math.sqrt(0.5 * 2.0), math.sqrt(0.6 * 1.0), math.sqrt(0.7 * 0.5)]
    assert found.ratio.value == pytest.approx(median(by_round))
    assert (found.ratio.low, found.ratio.high) == pytest.approx((min(by_round), max(by_round)))
    assert found.subject == "all (geometric mean of 2 cells)"
    assert found.verdict == UNDECIDED


def test_tables_hold_every_measurement_and_the_last_line_counts(tmp_path):
    rounds = measured({(NEW, "a"): [1.0, 1.0, 1.0], (OLD, "a"): [4.0, 4.0, 4.0]})
    write(tmp_path / "out", findings([subject()], rounds), rounds, "new against old")
    with (tmp_path / "out" / "rounds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["tree"], int(row["round"]), float(row["value"])) for row in rows] == [
        *((NEW, number, 1.0) for number in range(3)),
        *((OLD, number, 4.0) for number in range(3)),
    ]
    with (tmp_path / "out" / "ratios.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["above"], row["below"], float(row["ratio"]), row["bar"]) == ("new a", "old a", 0.25, "<= 0.5")
    assert (row["above_median"], row["unit"], row["rounds"], row["verdict"]) == ("1000.0", "ms", "3", HOLDS)
    first, line, last = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    assert first == "new against old"
    assert line == "something: new a / old a = 1000 / 4000 ms: 0.250 [0.250, 0.250] in 3 rounds  <= 0.5: holds"
    assert last == "holds: 1, does not hold: 0, not decided: 0"


def test_every_bar_asks_for_what_its_subject_measures(tmp_path):
    found = subjects(Material(["one", "two", "three"], [("four", "history")], tmp_path))
    assert len({one.name for one in found}) == len(found)
    for one in found:
        for bar in (*one.bars, *one.means.values()):
            for side in (bar.above, bar.below, *(Side(tree, bar.beyond) for tree in (NEW, OLD) if bar.beyond)):
                assert any(side.value.startswith(variant) for variant in one.variants[side.tree]), (one.name, side)


def test_a_worker_says_what_failed_and_goes_on():
    with Worker(Tree(ROOT, PYTHON)) as worker:
        for _ in range(2):
            with pytest.raises(TreeError, match=r"No module named 'against\.measured\.unheard'"):
                worker.ask("prepare", kind="unheard", options={})
        assert worker.ask("finish") is None


def test_a_worker_refuses_the_finemoe_of_another_tree(tmp_path, capfd):
    with Worker(Tree(tmp_path, PYTHON)) as worker, pytest.raises(TreeError, match="its process ended with status 1"):
        worker.ask("finish")
    assert "finemoe" in capfd.readouterr().err


def test_what_libraries_print_is_no_answer(tmp_path):
    (tmp_path / "finemoe").mkdir()
    (tmp_path / "finemoe" / "__init__.py").write_text("print('a word of welcome')")
    with Worker(Tree(tmp_path, PYTHON)) as worker:
        assert worker.ask("finish") is None


def test_a_tree_without_an_environment_is_refused(tmp_path):
    with pytest.raises(TreeError, match="run `make install` in"):
        Tree(tmp_path)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """With one revision, whose `make install` makes an environment."""
    folder = tmp_path / "repository"
    folder.mkdir()
    recipe = "install:\n\tmkdir -p .venv/bin && touch .venv/bin/python && echo $(VENV) >> installed\n"
    (folder / "Makefile").write_text(recipe)
    identity = ["-c", "user.name=somebody", "-c", "user.email=some@body"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "The first"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    monkeypatch.setenv("MAKEFLAGS", "VENV=another")  # as where make itself was told so
    return folder


def test_a_revision_is_checked_out_once_and_installed_by_itself(repository, tmp_path):
    (repository / "Makefile").write_text("changed since")
    for times in (1, 2):
        tree = checked_out("HEAD", repository, tmp_path / "trees")
        assert tree.folder.parent == tmp_path / "trees"
        assert (tree.folder / "Makefile").read_text().startswith("install:")
        assert (tree.folder / "installed").read_text() == "\n" * times
        assert tree.python == tree.folder / ".venv" / "bin" / "python"


def test_a_revision_that_there_is_none_of(repository, tmp_path):
    with pytest.raises(TreeError, match="rev-parse"):
        checked_out("nothing", repository, tmp_path / "trees")
