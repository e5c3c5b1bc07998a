"""`finemoe import`: what it prints of what it read, as text and as JSON, and that a mistake leaves nothing behind."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from finemoe.cli import app
from finemoe.errors import FinemoeError
from finemoe.importers import read_trace
from finemoe.traces import RoutingTrace
from tests.importers import written
from tests.importers.written import assert_same

run = CliRunner().invoke


def test_a_table_becomes_a_trace(tmp_path):
    path = written.write_csv(tmp_path / "a.csv", written.make())
    trace = tmp_path / "new" / "a.trace"
    done = run(app, ["import", str(path), "-o", str(trace), "--experts", "60", "--model", "mine", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "file": str(path),
        "trace": str(trace),
        "format": "csv",
        "model": "mine",
        "requests": 2,
        "rows": 9,
        "prefill_rows": 4,
        "decode_rows": 5,
        "layers": 3,
        "experts": 60,
        "experts_from": "given",
        "top_k": 2,
        "has_weights": True,
        "expert_bytes": [],
        "notes": [],
    }
    assert_same(RoutingTrace.load(trace), read_trace(path, num_experts=60))
    described = json.loads(run(app, ["info", str(trace), "--json"]).stdout)
    assert (described["num_rows"], described["model"]) == (9, "mine")


def test_text_says_what_is_known_and_what_not(tmp_path):
    path = written.write_jsonl(tmp_path / "a.jsonl", written.sglang_responses(written.make()))
    done = run(app, ["import", str(path), "-o", str(tmp_path / "a.trace"), "--layers", "3", "--top-k", "2"])
    assert done.exit_code == 0, done.output
    for text in ("sglang", "the greatest id + 1", "gate weights", "not recorded"):
        assert text in done.output
    assert "size of an expert" not in done.output
    sizes = run(
        app, ["import", str(written.write_route_trace(tmp_path / "b.csv", written.make())), "-o", str(tmp_path / "b.trace")]
    )
    for text in ("route-trace", "stated in the file", "100, 101, 102"):
        assert text in sizes.output
    assert RoutingTrace.load(tmp_path / "b.trace").expert_bytes == (100, 101, 102)


def test_prompts_whose_length_is_given(tmp_path):
    path = written.write_csv(tmp_path / "a.csv", written.make(), ("request", "token", "layer", "expert"))
    arguments = ["import", str(path), "-o", str(tmp_path / "a.trace")]
    plain = json.loads(run(app, [*arguments, "--json"]).stdout)
    assert (plain["prefill_rows"], plain["notes"][0][:48]) == (0, "the file does not state which rows are prompts: ")
    told = json.loads(run(app, [*arguments, "--prompt-tokens", "2", "--format", "csv", "--json"]).stdout)
    assert (told["prefill_rows"], told["notes"]) == (4, [])


def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path):
    path = written.write_csv(tmp_path / "a.csv", written.make())
    path.write_text(path.read_text().replace("decode", "dec\node", 1))
    target = tmp_path / "a.trace"
    done = run(app, ["import", str(path), "-o", str(target)])
    assert isinstance(done.exception, FinemoeError)
    assert str(done.exception).startswith(f"{path}: row ")
    assert "\n" not in str(done.exception)
    assert sorted(tmp_path.iterdir()) == [path]
    with pytest.raises(FinemoeError, match=r"unknown format 'xml'; .*known: "):
        raise run(app, ["import", str(path), "-o", str(target), "--format", "xml"]).exception
    with pytest.raises(FinemoeError, match="is a folder; name a file to write"):
        raise run(app, ["import", str(path), "-o", str(tmp_path)]).exception


def test_reading_a_table_loads_no_torch():
    code = (
        "import sys, finemoe.importers; import finemoe.importers.table; print('torch' in sys.modules, 'pyarrow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
