"""Parts are done once, written at once, and go on where they stopped."""

import time
from types import SimpleNamespace

import pytest

from finemoe.errors import FinemoeError
from finemoe.gpu_bench.alarm import Alarm
from finemoe.gpu_bench.bench import Bench, NotHere, Part
from finemoe.gpu_bench.plan import chosen
from finemoe.measured import IDLE, QUEUED, Copies, read_table


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


def test_what_is_done_is_not_done_again(tmp_path):
    done: list[str] = []
    bench, said = Bench(tmp_path, "abc"), []
    assert bench.run(parts(done, "a b"), None, said.append).left == ()
    bench.run(parts(done, "a b c"), None, said.append)
    assert done == ["a", "b", "c"]
    assert [row.bytes_per_s for row in bench.rows()["copies"]] == [1.0, 2.0, 3.0]
    assert said == ["[1/2] copies: a", "[2/2] copies: b", "[3/3] copies: c"]


def test_other_settings_are_not_mixed_in(tmp_path):
    done: list[str] = []
    Bench(tmp_path, "abc").run(parts(done, "a"), None, print)
    other = Bench(tmp_path, "def")
    other.run(parts(done, "a"), None, print)
    assert done == ["a", "a"]
    assert len(other.rows()["copies"]) == 1


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time, which only parts that say so move on."""
    now = [0.0]
    still = SimpleNamespace(monotonic=lambda: now[0], strftime=time.strftime, gmtime=time.gmtime)
    monkeypatch.setattr("finemoe.gpu_bench.bench.time", still)
    return now


def lasting(done: list[str], names: str, clock: list[float], took_s: float, seconds: float) -> list[Part]:
    """Parts that are expected to take some seconds and take others."""

    def run(name: str) -> list[Copies]:
        clock[0] += took_s
        done.append(name)
        return copies(1.0)

    return [Part("copies", name, seconds, lambda name=name: run(name)) for name in names.split()]


def test_time_is_kept_but_every_call_gets_on(tmp_path, clock):
    done: list[str] = []
    some = lasting(done, "a b c", clock, took_s=300.0, seconds=300.0)
    for count in (1, 2, 3):
        outcome = Bench(tmp_path, "abc").run(some, 4.0, print)
        assert len(done) == count
    assert done == ["a", "b", "c"]
    assert outcome.left == ()
    assert Bench(tmp_path / "other", "abc").run(some, 4.0, print).left == ("copies: b", "copies: c")


def test_before_a_deadline_only_what_fits_is_begun_and_what_does_not_is_passed_over(tmp_path):
    done: list[str] = []
    bench = Bench(tmp_path, "abc")
    some = [*parts(done, "long", seconds=300.0), *parts(done, "short", seconds=30.0)]
    outcome = bench.run(some, None, print, alarm=Left(100.0))
    assert done == ["short"]
    assert outcome.left == ("copies: long",)
    assert [(one.part, one.reason) for one in bench.missing()] == [("long", "no time yet")]


def test_what_parts_took_replaces_the_guess(tmp_path, clock):
    """Two of 10 s took 40 s each: by that pace one of 30 s takes 120 s, and 100 s are too few for it."""
    done: list[str] = []
    bench = Bench(tmp_path, "abc")
    bench.run(lasting(done, "a b", clock, took_s=40.0, seconds=10.0), None, print)
    assert bench.expected_s(Part("copies", "c", 30.0, list)) == pytest.approx(120.0)
    assert bench.expected_s(Part("systems", "c", 30.0, list)) == 30.0
    later = Bench(tmp_path, "abc")
    assert later.run(parts(done, "c", seconds=30.0), None, print, alarm=Left(100.0)).left == ("copies: c",)
    assert later.run(parts(done, "c", seconds=30.0), None, print, alarm=Left(150.0)).left == ()


def test_a_part_that_fails_or_cannot_be_done_is_named_and_tried_again(tmp_path):
    done: list[str] = []
    bench = Bench(tmp_path, "abc")
    for _ in range(2):
        outcome = bench.run(parts(done, "broken absent a"), None, print)
        assert [(one.part, one.reason) for one in outcome.failed] == [("broken", "ValueError: no such thing")]
        assert [(one.part, one.reason) for one in outcome.skipped] == [("absent", "there is no GPU")]
    assert done == ["broken", "absent", "a", "broken", "absent"]
    assert len(bench.rows()["copies"]) == 1


def test_an_interruption_loses_only_the_part_it_hit(tmp_path):
    done: list[str] = []

    def interrupted() -> list[Copies]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Bench(tmp_path, "abc").run([*parts(done, "a"), Part("copies", "b", 60.0, interrupted)], None, print)
    assert len(read_table("copies", tmp_path)) == 1
    Bench(tmp_path, "abc").run(parts(done, "a b"), None, print)
    assert done == ["a", "b"]


def test_nothing_is_tried_on_a_device_beyond_use(tmp_path):
    done: list[str] = []
    outcome = Bench(tmp_path, "abc").run(parts(done, "a broken b"), None, print, lambda: False)
    assert done == ["a", "broken"]
    assert outcome.left == ("copies: b",)


def test_calls_side_by_side_lose_nothing_of_each_other(tmp_path):
    done: list[str] = []
    first, second = Bench(tmp_path, "abc"), Bench(tmp_path, "abc")
    first.run(parts(done, "a"), None, print)
    second.run(parts(done, "b"), None, print)
    assert {row.bytes_per_s for row in Bench(tmp_path, "abc").rows()["copies"]} == {1.0, 2.0}


def test_whoever_ends_last_writes_what_all_have_measured(tmp_path):
    """Three calls begin together, as the slice's checks do; nobody has seen the others' files when it begins."""
    done: list[str] = []
    together = [Bench(tmp_path, "abc") for _ in range(3)]
    for bench, name in zip(together, "abc", strict=True):
        bench.run(parts(done, name), None, print)
    assert read_table("copies", tmp_path).bytes_per_s.tolist() == [1.0, 2.0, 3.0]
    assert together[0].missing() == []


def test_changed_code_keeps_what_was_measured_and_checks_bits_anew(tmp_path):
    done: list[str] = []
    some = [*parts(done, "speed"), *parts(done, "bits", is_of_code=True)]
    Bench(tmp_path, "abc", "old").run(some, None, print)
    new = Bench(tmp_path, "abc", "new")
    assert [row.bytes_per_s for row in new.rows()["copies"]] == [1.0]
    new.run(some, None, print)
    assert done == ["speed", "bits", "bits"]
    assert [(one["code"], one["parts"]) for one in new.calls()] == [("old", 2), ("new", 1)]


def test_what_is_measured_again_counts_as_found_last(tmp_path):
    done: list[str] = []
    Bench(tmp_path, "abc").run(parts(done, "a b"), None, print)
    bench = Bench(tmp_path, "abc")
    bench.run(parts(done, "a"), None, print, again=True)
    assert [row.bytes_per_s for row in bench.rows()["copies"]] == [3.0, 2.0]


def test_a_part_that_takes_too_long_is_ended_and_named(tmp_path, monkeypatch):
    done: list[str] = []
    monkeypatch.setattr("finemoe.gpu_bench.bench._LEAST_LIMIT_S", 0.2)
    some = [Part("copies", "endless", 0.01, lambda: time.sleep(60)), *parts(done, "a")]
    outcome = Bench(tmp_path, "abc").run(some, None, print)
    assert [(one.part, one.reason) for one in outcome.failed] == [("endless", "OutOfTime: not done after 0 s")]
    assert done == ["a"]


def test_what_made_a_call_hang_is_tried_last(tmp_path):
    """The watchdog has written stacks, and the call's file says which part had begun."""
    done: list[str] = []
    broken_off(tmp_path).stacks_path.write_text("Thread 0x1")
    again = Bench(tmp_path, "abc")
    assert [(one.part, one.reason) for one in again.missing()] == [("b", "a call ended while it ran")]
    again.run(parts(done, "a b c"), None, print)
    assert done == ["a", "c", "b"]
    assert again.missing() == []


def broken_off(folder) -> Bench:
    """A call that ended inside the part b."""
    bench = Bench(folder, "abc")
    with pytest.raises(KeyboardInterrupt):
        bench.run([Part("copies", "b", 60.0, lambda: (_ for _ in ()).throw(KeyboardInterrupt))], None, print)
    return bench


def test_what_ended_two_calls_in_any_way_is_tried_last(tmp_path):
    done: list[str] = []
    broken_off(tmp_path)
    assert [part.title for part in parts(done, "b") if part.title in Bench(tmp_path, "abc")._deadly()] == []
    broken_off(tmp_path)
    Bench(tmp_path, "abc").run(parts(done, "a b c"), None, print)
    assert done == ["a", "c", "b"]


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
