"""Parts are done once, written at once, and go on where they stopped."""

import pytest

from finemoe.gpu_bench.bench import Bench, NotHere, Part
from finemoe.measured import Copies, read_table


def copies(rate: float) -> list[Copies]:
    return [Copies("queued", 1, 1, rate, rate, rate)]


def parts(done: list[str], names: str, minutes: float = 1.0) -> list[Part]:
    def run(name: str) -> list[Copies]:
        done.append(name)
        if name == "broken":
            raise ValueError("no such thing")
        if name == "absent":
            raise NotHere("there is no GPU")
        return copies(float(len(done)))

    return [Part("copies", name, minutes, lambda name=name: run(name)) for name in names.split()]


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


def test_time_is_kept_but_every_call_gets_on(tmp_path):
    done: list[str] = []
    bench = Bench(tmp_path, "abc")
    for _ in range(3):
        outcome = bench.run(parts(done, "a b c", minutes=5.0), 4.0, print)
    assert done == ["a", "b", "c"]
    assert outcome.left == ()
    assert Bench(tmp_path / "other", "abc").run(parts(done, "a b c", minutes=5.0), 4.0, print).left == ("copies: b", "copies: c")


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
        Bench(tmp_path, "abc").run([*parts(done, "a"), Part("copies", "b", 1.0, interrupted)], None, print)
    assert len(read_table("copies", tmp_path)) == 1
    Bench(tmp_path, "abc").run(parts(done, "a b"), None, print)
    assert done == ["a", "b"]


def test_nothing_is_tried_on_a_device_beyond_use(tmp_path):
    done: list[str] = []
    outcome = Bench(tmp_path, "abc").run(parts(done, "a broken b"), None, print, lambda: False)
    assert done == ["a", "broken"]
    assert outcome.left == ("copies: b",)
