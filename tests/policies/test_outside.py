"""A policy and a rule that lie outside the package are chosen by name like its own, and nothing of it is touched."""

import importlib
import re
import subprocess
import sys
import textwrap
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import finemoe
from finemoe.cache.rules import RULES, EvictionRule, naming, rule_named
from finemoe.cli import app
from finemoe.errors import FinemoeError
from finemoe.paths import ROOT
from finemoe.policies import POLICIES, known_policies, make_policy, policy_named
from finemoe.simulation.replay import replay_setup
from finemoe.simulation.synthetic import Recipe, synthetic_trace
from tests.runtime.models import build
from tests.simulation import naive
from tests.simulation.golden import FILE
from tests.simulation.test_golden import DISTANCE, HISTORY, SERVED, SLOTS, counts
from tests.simulation.test_replay import assert_live_and_replay_agree

OUTSIDE = Path(__file__).with_name("outside")
POLICY, RULE = "repeat_last:RepeatLast", "newest_first:RULE"
GOLDEN_COUNTS = (120, 27, 2, 2)  # hits, misses, prefetched, wasted, in experts


@pytest.fixture(autouse=True)
def _nothing_stays(monkeypatch):
    """Neither names nor modules nor folders outlive a test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for registry in (finemoe.policies._REGISTRY, finemoe.cache.rules._REGISTRY):
        monkeypatch.setattr(registry, "registered", {})
    yield
    for name in ("repeat_last", "repeat_last_twin", "newest_first", "newest_noted", "broken"):
        sys.modules.pop(name, None)


@pytest.fixture
def folder(monkeypatch):
    """The folder can be imported from."""
    monkeypatch.syspath_prepend(OUTSIDE)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that brings the policy under a name, by an entry point."""

    def install(*lines: str, group: str = "finemoe.policies") -> None:
        information = tmp_path / "outside-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]))
        for file in OUTSIDE.glob("*.py"):
            (tmp_path / file.name).write_text(file.read_text())
        monkeypatch.syspath_prepend(tmp_path)

    return install


def assert_it_is_repeat_last(name: str, monkeypatch) -> None:
    """Replayed it counts what its naive twin does, and live what it counts in a replay."""
    from repeat_last_twin import RepeatLast as Twin

    monkeypatch.setitem(naive.SYSTEMS, name, (Twin, "lfu"))
    for rule in (None, "finemoe", "lru"):
        assert counts(name, rule) == naive.replay(SERVED, name, rule, SLOTS, HISTORY, DISTANCE)
    found = counts(name)
    assert (found["hits"], found["misses"], found["ahead"], found["wasted"]) == GOLDEN_COUNTS
    assert_live_and_replay_agree(name, 0.3)
    assert finemoe.replay(SERVED, name).policy == name
    assert name not in POLICIES


def test_a_registered_policy_is_replayed_and_run(folder, monkeypatch):
    from repeat_last import RepeatLast

    finemoe.register_policy("repeat-last", RepeatLast)
    assert "repeat-last" in known_policies()
    assert policy_named("repeat-last") is RepeatLast
    assert_it_is_repeat_last("repeat-last", monkeypatch)


def test_an_installed_package_brings_a_policy(package, monkeypatch):
    package("repeat-last = repeat_last:RepeatLast")
    assert "repeat-last" in known_policies()
    assert "repeat_last" not in sys.modules, "naming what there is loads nothing"
    assert_it_is_repeat_last("repeat-last", monkeypatch)


def test_a_policy_is_named_by_its_place(folder, monkeypatch):
    assert_it_is_repeat_last(POLICY, monkeypatch)


def test_the_command_line_finds_it_in_the_working_folder(monkeypatch):
    monkeypatch.chdir(OUTSIDE)
    arguments = ["replay", str(FILE), "--split", "--expert-memory", "0.375", "--prefetch-distance", "2"]
    done = CliRunner().invoke(app, [*arguments, "--policy", "on-demand"])
    assert done.exit_code == 0, done.output
    assert str(OUTSIDE) not in sys.path, "only who names a module of his own has his folder searched"
    done = CliRunner().invoke(app, [*arguments, "--policy", POLICY])
    assert done.exit_code == 0, done.output
    assert f"{POLICY} / lfu" in done.output
    assert "expert memory 37.5 %" in done.output
    rows = (r"hit rate +│ .*\((\d+) of", r"misses +│ (\d+)", r"prefetched +│ (\d+) experts", r"evicted unused +│ (\d+) experts")
    assert tuple(int(number) for row in rows for number in re.findall(row, done.output)) == GOLDEN_COUNTS
    options = ["--policy", POLICY, "--prompt", "Why?", "--max-new-tokens", "2", "--expert-memory", "0.5"]
    done = CliRunner().invoke(app, ["run", "--model", "qwen-mini", *options])
    assert done.exit_code == 0, done.output
    assert f"{POLICY} / lfu" in done.output


def newest_first(log, key):
    """The outside rules' naive twin."""
    return -max(log.times(key), default=0)


def assert_it_is_newest_first(name: str, monkeypatch) -> None:
    """Replayed it counts what its naive twin does, and live what it counts in a replay."""
    monkeypatch.setitem(naive.RULES, name, newest_first)
    for slots in (6, SLOTS, 13):
        assert counts("finemoe", name, slots) == naive.replay(SERVED, "finemoe", name, slots, HISTORY, DISTANCE)
    assert counts("finemoe", name) != counts("finemoe", "lru")
    for policy in ("on-demand", "finemoe"):
        assert_live_and_replay_agree(policy, 0.3, eviction=name)
    assert finemoe.replay(SERVED, "on-demand", eviction=name).eviction == name
    assert name not in RULES


@pytest.mark.parametrize("module", ["newest_first", "newest_noted"])
def test_a_registered_eviction_rule_is_replayed_and_run(folder, monkeypatch, module):
    finemoe.register_eviction("newest-first", importlib.import_module(module).RULE)
    assert_it_is_newest_first("newest-first", monkeypatch)


def test_an_installed_package_brings_an_eviction_rule(package, monkeypatch):
    package(f"newest-first = {RULE}", group="finemoe.eviction_rules")
    assert_it_is_newest_first("newest-first", monkeypatch)


def test_an_eviction_rule_is_named_by_its_place(folder, monkeypatch):
    assert_it_is_newest_first(RULE, monkeypatch)


def test_what_is_no_eviction_rule_is_named_in_a_line(folder):
    import newest_first as outside

    for name, message in {
        "newest_first:weigh": "eviction rule 'newest_first:weigh' is <function weigh .*; it must be a finemoe.cache.rules",
        "newest_first:NONE": "eviction rule 'newest_first:NONE' cannot be loaded .*AttributeError",
        "mru": r"unknown eviction rule 'mru'; did you mean 'lru'\? known: belady, finemoe, least-stale",
    }.items():
        with pytest.raises(FinemoeError, match=message) as caught:
            finemoe.replay(SERVED, "on-demand", eviction=name)
        assert "\n" not in str(caught.value)
    with pytest.raises(FinemoeError, match="eviction rule 'lru' is registered already, by finemoe"):
        finemoe.register_eviction("lru", outside.RULE)
    finemoe.register_eviction("seer", replace(outside.RULE, needs_future=True))
    with pytest.raises(FinemoeError, match="eviction rule 'seer' must know the future"):
        finemoe.offload(build("mixtral"), 0.5, eviction="seer")


def test_rules_named_for_a_block_have_no_name_after_it():
    """Also where the block fails, and where one of the names is taken: then none is given."""
    rule = rule_named("lru")
    with suppress(ZeroDivisionError), naming({"mine": rule, "other": rule}):
        assert rule_named("mine") is rule_named("other") is rule
        raise ZeroDivisionError
    with pytest.raises(FinemoeError, match="'lru' is registered already"), naming({"mine": rule, "lru": rule}):
        pass
    for name in ("mine", "other"):
        with pytest.raises(FinemoeError, match=f"unknown eviction rule '{name}'"):
            rule_named(name)


@pytest.mark.parametrize("hardware", [None, "6x-rtx3090"])
def test_a_rule_that_fails_in_a_replay_is_heard_of(monkeypatch, hardware):
    """Compiled code calls it by address, past which nothing can be raised."""

    def weigh(stats, experts, worth):
        for place in range(len(experts)):
            worth[place] = 1 / (stats.frequency[experts[place]] - stats.frequency[experts[place]])

    finemoe.register_eviction("failing", EvictionRule(weigh))
    trace = SERVED if hardware is None else synthetic_trace(Recipe(0.2, 0.3, 0.4, 8), 32, 8, 2, 2, 3)
    before = sys.unraisablehook
    with pytest.raises(FinemoeError, match="eviction rule 'failing' failed: ZeroDivisionError: division by zero"):
        finemoe.replay(trace, "on-demand", 0.1, eviction="failing", hardware=hardware)
    assert sys.unraisablehook is before
    assert finemoe.replay(SERVED, "on-demand", 0.5, eviction="lru").accesses > 0


def test_mistakes_are_named_in_a_line(folder, package, tmp_path):
    from repeat_last import RepeatLast

    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    taken = ("finemoe = repeat_last:RepeatLast", "twice = a:A", "twice = b:B")
    package("broken = broken:Policy", "number = repeat_last:np.pi", *taken)
    for name, message in {
        "broken": r"policy 'broken' cannot be loaded from 'broken:Policy' \(ModuleNotFoundError: No module named 'nothing_of_",
        "repeat_last:Nothing": "'repeat_last:Nothing' cannot be loaded .*AttributeError: module 'repeat_last' has no attribute",
        "number": r"policy 'number' is 3\.14.*; it must be a class derived from finemoe\.policies\.base\.Policy",
        "repeat_last:Policy": "policy 'repeat_last:Policy' lacks end_iteration, on_gate, start_iteration, which",
        "finemoe": "policy 'finemoe' is registered 2 times, by finemoe and the entry point 'repeat_last:RepeatLast'",
        "twice": "policy 'twice' is registered 2 times, by the entry point 'a:A' and the entry point 'b:B'; keep one",
        "magic": "unknown policy 'magic'; known: broken, deepspeed-inference, finemoe, .*, or 'module:Class' for your own",
        "repeat_last:": "unknown policy 'repeat_last:'; known",
    }.items():
        with pytest.raises(FinemoeError, match=message) as caught:
            make_policy(name, replay_setup(SERVED))
        assert "\n" not in str(caught.value)
    for name, policy, message in (
        ("oracle", RepeatLast, "policy 'oracle' is registered already, by finemoe"),
        ("broken", RepeatLast, "policy 'broken' is registered already, by the entry point 'broken:Policy'"),
        ("a:b", RepeatLast, "'a:b' cannot be the name of a policy"),
        ("mine", RepeatLast(replay_setup(SERVED)), "policy 'mine' is <repeat_last.RepeatLast"),
        ("mine", str, "policy 'mine' is <class 'str'>"),
    ):
        with pytest.raises(FinemoeError, match=message):
            finemoe.register_policy(name, policy)
    finemoe.register_policy("mine", RepeatLast)
    with pytest.raises(FinemoeError, match="policy 'mine' is registered already, by register"):
        finemoe.register_policy("mine", RepeatLast)


def test_a_policy_that_must_know_the_future_is_refused_live(folder):
    from repeat_last import RepeatLast

    class Seer(RepeatLast):
        needs_future = True

    finemoe.register_policy("seer", Seer)
    assert "seer" in known_policies(is_replay=True)
    assert "seer" not in known_policies()
    with pytest.raises(FinemoeError, match="policy 'seer' must know the future"):
        policy_named("seer")


def blocks_of(language: str, page: str) -> list[str]:
    """The page's code in that language, without the indentation of the list it is in."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", page, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(text) for _, text in found]


@pytest.mark.timeout(300)  # programs that load a model
def test_the_page_says_what_is_tested(tmp_path):
    """docs/add_a_system.md: its policy, its twin and its rule are those of this folder, and its commands run."""
    page = (ROOT / "docs" / "add_a_system.md").read_text(encoding="utf-8")
    policy, twin, _, rule = blocks_of("python", page)
    assert policy == (OUTSIDE / "repeat_last.py").read_text()
    assert rule == (OUTSIDE / "newest_first.py").read_text()
    assert (OUTSIDE / "repeat_last_twin.py").read_text().endswith(twin)
    assert 'repeat-last = "repeat_last:RepeatLast"' in blocks_of("toml", page)[0]
    hits, misses, ahead, wasted = GOLDEN_COUNTS
    assert f"{hits} hits, {misses} misses, {ahead} experts prefetched and {wasted} of them evicted unused" in page
    assert rule == (OUTSIDE / "newest_first.py").read_text()
    (tmp_path / "repeat_last.py").write_text(policy)
    (tmp_path / "newest_first.py").write_text(rule)
    for name in ("tests", "data", "profiles"):
        (tmp_path / name).symlink_to(ROOT / name)
    commands = [line for text in blocks_of("sh", page) for line in text.splitlines() if line.startswith("finemoe ")]
    assert len(commands) == 5
    for command in commands:
        arguments = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', command)]
        done = subprocess.run([sys.executable, "-m", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
