"""Ctrl-C during `finemoe record` keeps the finished requests, and --resume gives the file that one recording gives."""

import errno
from pathlib import Path

import pytest
from typer.testing import CliRunner

import finemoe
from finemoe.cli import app
from finemoe.errors import FinemoeError
from finemoe.runtime import recorder
from finemoe.runtime.joining import joined
from finemoe.traces import RoutingTrace
from tests.simulation.golden import FILE as GOLDEN

pytestmark = pytest.mark.timeout(300)  # a model is loaded
run = CliRunner().invoke
OPTIONS = ["--limit", "10", "--max-new-tokens", "2", "--batch-size", "4", "--lookahead", "1"]


def interrupted_at(monkeypatch, batch: int) -> None:
    """Ctrl-C in a batch of the next recording."""
    record_batch, begun = recorder._record_batch, []

    def record_until(*arguments):
        begun.append(None)
        if len(begun) > batch:
            raise KeyboardInterrupt
        return record_batch(*arguments)

    monkeypatch.setattr(recorder, "_record_batch", record_until)


def test_what_is_recorded_is_kept_and_resumed(tmp_path, monkeypatch):
    whole, output, partial = (tmp_path / name for name in ("whole.trace", "a.trace", "a.partial.trace"))
    arguments = ["record", "-m", "mixtral-mini", *OPTIONS, "-o"]
    assert run(app, [*arguments, str(whole)]).exit_code == 0
    with monkeypatch.context() as patched:
        interrupted_at(patched, 2)
        done = run(app, [*arguments, str(output)])
    assert done.exit_code == 130
    kept = f"finemoe: interrupted; 8 of 10 requests are kept in {partial}; add --resume to record the rest"
    assert done.stderr.splitlines()[-1] == kept
    assert not output.exists()
    assert RoutingTrace.load(partial).num_requests == 8
    assert "add --resume to continue it" in str(run(app, [*arguments, str(output)]).exception)
    other = [*arguments, str(output), "--resume", "--dataset", "dialogues"]
    assert "recorded from other prompts" in str(run(app, other).exception)
    assert run(app, [*arguments, str(output), "--resume"]).exit_code == 0
    assert output.read_bytes() == whole.read_bytes()
    assert not partial.exists()
    assert "leave --resume out" in str(run(app, [*arguments, str(output), "--resume"]).exception)


def test_nothing_is_kept_of_nothing(tmp_path, monkeypatch):
    interrupted_at(monkeypatch, 0)
    done = run(app, ["record", "-m", "mixtral-mini", *OPTIONS, "-o", str(tmp_path / "a.trace")])
    assert (done.exit_code, list(tmp_path.iterdir())) == (130, [])
    assert done.stderr.splitlines()[-1] == "finemoe: interrupted; no file was written"


def test_the_library_raises_an_interrupt_unless_told_to_keep(monkeypatch):
    from tests.runtime.models import build

    interrupted_at(monkeypatch, 0)
    with pytest.raises(KeyboardInterrupt):
        finemoe.record(build("mixtral"), ["a"], tokenizer=lambda *_, **__: None, max_new_tokens=1)


def test_parts_of_different_recordings_are_not_joined():
    golden = RoutingTrace.load(GOLDEN)
    first, second = golden.select([0]), golden.select([1, 2])
    both = joined(first, second)
    assert (both.num_requests, both.num_rows) == (3, first.num_rows + second.num_rows)
    assert (both.embeddings() == golden.select([0, 1, 2]).embeddings()).all()
    with pytest.raises(FinemoeError, match="differ in lookahead_strides"):
        joined(first, second.with_strides(()))


def test_a_recording_outlives_a_full_disk(tmp_path, monkeypatch):
    save, elsewhere = RoutingTrace.save, tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))

    def save_unless_full(trace, path):
        if elsewhere not in Path(path).parents:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save(trace, path)

    monkeypatch.setattr(RoutingTrace, "save", save_unless_full)
    done = run(app, ["record", "-m", "mixtral-mini", *OPTIONS, "-o", str(tmp_path / "a.trace")])
    (kept,) = elsewhere.glob("*/a.trace")
    assert (
        str(done.exception) == f"{tmp_path / 'a.trace'}: No space left on device; the recording is in {kept}, move it from there"
    )
    assert RoutingTrace.load(kept).num_requests == 10
