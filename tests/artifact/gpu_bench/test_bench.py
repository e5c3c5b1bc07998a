"""Parts are done once, written at once, and go on where they stopped."""

import time
from types import SimpleNamespace

import pytest

from finemoe.artifact.gpu_bench.agenda import chosen
from finemoe.artifact.gpu_bench.alarm import Alarm
from finemoe.artifact.gpu_bench.bench import Bench, NotHere, Outcome, Part
from finemoe.artifact.gpu_bench.calls import Calls
from finemoe.artifact.machines.rows import read_table
from finemoe.artifact.machines.schema import IDLE, QUEUED, Copies
from finemoe.errors import FinemoeError


class Left(Alarm):
    """So many seconds are left until the deadline, however long anything takes."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        super().__init__()

    @property
    def left_s(self) -> float:
        return self._seconds


def copies(rate: float) -> list[Copies]:
    return [Copies(QUEUED, 1, 1, 1, IDLE, rate, rate, rate)]


def parts(done: list[str], names: str, seconds: float = 60.0, is_of_code: bool = False) -> list[Part]:
    def run(name: str) -> list[Copies]:
        done.append(name)
        if name == "broken":
            raise ValueError("no such thing")
        if name == "absent":
            raise NotHere("there is no GPU")
        return copies(float(len(done)))

    return [Part("copies", name, seconds, lambda name=name: run(name), is_of_code=is_of_code) for name in names.split()]


def run(folder, some: list[Part], digest: str = "abc", code: str = "", again: bool = False, **options) -> tuple[Outcome, Calls]:
    """A call of its own."""
    calls = Calls(folder, digest, code)
    return Bench(folder, calls, **options).run(some, again), calls


def rates(calls: Calls) -> list[float]:
    return [row.bytes_per_s for row in calls.rows()["copies"]]


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time, which only parts that say so move on."""
    now = [0.0]
    still = SimpleNamespace(monotonic=lambda: now[0], strftime=time.strftime, gmtime=time.gmtime)
    monkeypatch.setattr("finemoe.artifact.gpu_bench.bench.time", still)
    return now


def lasting(done: list[str], names: str, clock: list[float], took_s: float, seconds: float) -> list[Part]:
    """Parts that are expected to take some seconds and take others."""

    def run(name: str) -> list[Copies]:
        clock[0] += took_s
        done.append(name)
        return copies(1.0)

    return [Part("copies", name, seconds, lambda name=name: run(name)) for name in names.split()]


def test_what_is_done_is_not_done_again(tmp_path):
    done: list[str] = []
    said: list[str] = []
    outcome, _ = run(tmp_path, parts(done, "a b"), say=said.append)
    assert outcome.left == []
    _, calls = run(tmp_path, parts(done, "a b c"), say=said.append)
    assert done == ["a", "b", "c"]
    assert rates(calls) == [1.0, 2.0, 3.0]
    assert said == ["[1/2] copies: a", "[2/2] copies: b", "[3/3] copies: c"]


def test_other_settings_are_not_mixed_in(tmp_path):
    done: list[str] = []
    run(tmp_path, parts(done, "a"), "abc")
    _, other = run(tmp_path, parts(done, "a"), "def")
    assert done == ["a", "a"]
    assert rates(other) == [2.0]


def test_time_is_kept_but_every_call_gets_on(tmp_path, clock):
    done: list[str] = []
    some = lasting(done, "a b c", clock, took_s=300.0, seconds=300.0)
    for count in (1, 2, 3):
        outcome, _ = run(tmp_path, some, minutes=4.0)
        assert len(done) == count
    assert done == ["a", "b", "c"]
    assert outcome.left == []
    assert run(tmp_path / "other", some, minutes=4.0)[0].left == ["copies: b", "copies: c"]


def test_before_a_deadline_only_what_fits_is_begun_and_what_does_not_is_passed_over(tmp_path):
    done: list[str] = []
    some = [*parts(done, "long", seconds=300.0), *parts(done, "short", seconds=30.0)]
    outcome, calls = run(tmp_path, some, alarm=Left(100.0))
    assert done == ["short"]
    assert outcome.left == ["copies: long"]
    assert [(one.part, one.reason) for one in calls.missing()] == [("long", "no time yet")]


def test_what_parts_took_replaces_the_guess(tmp_path, clock):
    """Two of 10 s took 40 s each: by that pace one of 30 s takes 120 s, and 100 s are too few for it."""
    done: list[str] = []
    _, calls = run(tmp_path, lasting(done, "a b", clock, took_s=40.0, seconds=10.0))
    assert calls.pace("copies") == pytest.approx(4.0)
    assert calls.pace("systems") == 1.0
    assert Bench(tmp_path, calls).expected_s(Part("copies", "c", 30.0, list)) == pytest.approx(120.0)
    assert run(tmp_path, parts(done, "c", seconds=30.0), alarm=Left(100.0))[0].left == ["copies: c"]
    assert run(tmp_path, parts(done, "c", seconds=30.0), alarm=Left(150.0))[0].left == []


def test_a_part_that_fails_or_cannot_be_done_is_named_and_tried_again(tmp_path):
    done: list[str] = []
    for _ in range(2):
        outcome, calls = run(tmp_path, parts(done, "broken absent a"))
        assert [(one.part, one.reason) for one in outcome.failed] == [("broken", "ValueError: no such thing")]
        assert [(one.part, one.reason) for one in outcome.skipped] == [("absent", "there is no GPU")]
    assert done == ["broken", "absent", "a", "broken", "absent"]
    assert len(rates(calls)) == 1


def test_an_interruption_loses_only_the_part_it_hit(tmp_path):
    done: list[str] = []
    broken_off(tmp_path, parts(done, "a"))
    assert len(read_table("copies", tmp_path)) == 1
    run(tmp_path, parts(done, "a b"))
    assert done == ["a", "b"]


def test_nothing_is_tried_on_a_device_beyond_use(tmp_path):
    done: list[str] = []
    outcome, _ = run(tmp_path, parts(done, "a broken b"), is_usable=lambda: False)
    assert done == ["a", "broken"]
    assert outcome.left == ["copies: b"]


def test_a_part_that_takes_too_long_is_ended_and_named(tmp_path, monkeypatch):
    done: list[str] = []
    monkeypatch.setattr("finemoe.artifact.gpu_bench.bench._LEAST_LIMIT_S", 0.2)
    outcome, _ = run(tmp_path, [Part("copies", "endless", 0.01, lambda: time.sleep(60)), *parts(done, "a")])
    assert [(one.part, one.reason) for one in outcome.failed] == [("endless", "OutOfTime: not done after 0 s")]
    assert done == ["a"]


def test_whoever_ends_last_writes_what_all_have_measured(tmp_path):
    """Three calls begin together, as the slice's checks do; nobody has seen the others' files when it begins."""
    done: list[str] = []
    together = [Calls(tmp_path, "abc") for _ in range(3)]
    for calls, name in zip(together, "abc", strict=True):
        Bench(tmp_path, calls).run(parts(done, name))
    assert read_table("copies", tmp_path).bytes_per_s.tolist() == [1.0, 2.0, 3.0]
    assert together[0].missing() == []


def test_changed_code_keeps_what_was_measured_and_checks_bits_anew(tmp_path):
    done: list[str] = []
    some = [*parts(done, "speed"), *parts(done, "bits", is_of_code=True)]
    run(tmp_path, some, code="old")
    assert rates(Calls(tmp_path, "abc", "new")) == [1.0]
    _, new = run(tmp_path, some, code="new")
    assert done == ["speed", "bits", "bits"]
    assert [(one["code"], one["parts"]) for one in new.summaries()] == [("old", 2), ("new", 1)]


def test_what_is_measured_again_counts_as_found_last(tmp_path):
    done: list[str] = []
    run(tmp_path, parts(done, "a b"))
    _, calls = run(tmp_path, parts(done, "a"), again=True)
    assert rates(calls) == [3.0, 2.0]


def broken_off(folder, before: list[Part] | None = None) -> Calls:
    """A call that ended inside the part b."""
    calls = Calls(folder, "abc")
    with pytest.raises(KeyboardInterrupt):
        Bench(folder, calls).run([*(before or []), Part("copies", "b", 60.0, lambda: (_ for _ in ()).throw(KeyboardInterrupt))])
    return calls


def test_what_made_a_call_hang_is_tried_last(tmp_path):
    """The watchdog has written stacks, and the call's file says which part had begun."""
    done: list[str] = []
    broken_off(tmp_path).stacks_path.write_text("Thread 0x1")
    assert [(one.part, one.reason) for one in Calls(tmp_path, "abc").missing()] == [("b", "a call ended while it ran")]
    _, calls = run(tmp_path, parts(done, "a b c"))
    assert done == ["a", "c", "b"]
    assert calls.missing() == []


def test_what_ended_two_calls_in_any_way_is_tried_last(tmp_path):
    done: list[str] = []
    broken_off(tmp_path)
    assert Calls(tmp_path, "abc").deadly() == set()
    broken_off(tmp_path)
    run(tmp_path, parts(done, "a b c"))
    assert done == ["a", "c", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"code"', r"-001\.json: damaged"), ("[]", "not the file of a call"), ('{"done": {}}', "not the file")],
)
def test_a_damaged_file_of_a_call_is_one_clear_line(tmp_path, content, message):
    run(tmp_path, parts([], "a"))
    (path,) = tmp_path.glob("parts-*.json")
    path.write_text(content)
    with pytest.raises(FinemoeError, match=message):
        run(tmp_path, parts([], "b"))


def test_a_call_that_was_killed_before_it_wrote_is_none(tmp_path):
    (tmp_path / "parts-abc-001.json").touch()
    assert Calls(tmp_path, "abc").summaries() == []


def test_groups_are_measured_in_the_order_asked_for():
    found = [
        Part(group, name, 1.0, list) for group in ("link", "systems") for name in ("big lru 0.5", "big lru 0.25", "big fine 0.25")
    ]
    titles = [part.title for part in chosen(found, ("systems:0.25:fine", "systems:lru", "link", "systems"))]
    assert titles == [f"systems: {name}" for name in ("big fine 0.25", "big lru 0.5", "big lru 0.25")] + [
        f"link: {name}" for name in ("big lru 0.5", "big lru 0.25", "big fine 0.25")
    ]
    assert chosen(found, ()) == found
    with pytest.raises(FinemoeError, match=r"no part is called 'systems:0\.3'; groups: link, systems"):
        chosen(found, ("systems:0.3",))
