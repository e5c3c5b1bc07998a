"""The same routing through several formats is one trace, and each format is found without being named."""

import gzip
import json

import numpy as np
import pytest

from finemoe.errors import FinemoeError
from finemoe.importers import FORMATS, Options, import_trace, read_trace
from tests.importers import written
from tests.importers.written import assert_is, assert_same

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq


def write_parquet(path, one, names=written.COLUMNS):
    columns = list(zip(*one.long_rows(), strict=True))
    table = {name: pa.array(column) for name, column in zip(written.COLUMNS, columns, strict=True) if name in names}
    pq.write_table(pa.table(table), path)
    return path


def token_objects(one):
    return [
        {"request": number, "phase": "prefill" if token < prompt else "decode", "experts": ids[token].tolist(), "weights": w}
        for number, ids, weights, prompt in one.requests()
        for token, w in enumerate(weights.astype(float).tolist())
    ]


WITH_WEIGHTS = {
    "csv": lambda folder, one: written.write_csv(folder / "a.csv", one),
    "npz": lambda folder, one: written.write_npz(folder / "a.npz", one),
    "parquet": lambda folder, one: write_parquet(folder / "a.parquet", one),
    "route-trace": lambda folder, one: written.write_route_trace(folder / "b.csv", one),
    "jsonl": lambda folder, one: written.write_jsonl(folder / "a.jsonl", written.request_objects(one)),
    "jsonl of tokens": lambda folder, one: written.write_jsonl(folder / "b.jsonl", token_objects(one)),
}
IDS_ALONE = {
    "csv": lambda folder, one: written.write_csv(folder / "a.csv", one, ("layer", "expert", "token", "request", "phase")),
    "npz": lambda folder, one: written.write_npz(folder / "a.npz", one, weights=None),
    "parquet": lambda folder, one: write_parquet(folder / "a.parquet", one, ("request", "token", "phase", "layer", "expert")),
    "jsonl": lambda folder, one: written.write_jsonl(
        folder / "a.jsonl", [{**request, "weights": None} for request in written.request_objects(one)]
    ),
    "vllm": lambda folder, one: written.write_jsonl(folder / "vllm.jsonl", written.vllm_responses(one)),
    "sglang": lambda folder, one: written.write_jsonl(folder / "sglang.jsonl", written.sglang_responses(one)),
}


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_with_weights(tmp_path, name):
    one = written.make()
    path = WITH_WEIGHTS[name](tmp_path, one)
    found = import_trace(path, None, Options(num_experts=7))
    assert found.format == name.split()[0]
    assert_is(found.trace, one)
    assert_same(found.trace, read_trace(WITH_WEIGHTS["npz"](tmp_path, one), num_experts=7))


@pytest.mark.parametrize("name", IDS_ALONE)
def test_ids_alone(tmp_path, name):
    one = written.make()
    options = {"num_experts": 7, "num_layers": 3, "top_k": 2}
    path = IDS_ALONE[name](tmp_path, one)
    found = import_trace(path, None, Options(**options))
    assert found.format == name
    assert_is(found.trace, one, has_weights=False)
    twin = read_trace(IDS_ALONE["npz"](tmp_path, one), **options)
    for array in written.ARRAYS:
        assert np.array_equal(getattr(found.trace, array), getattr(twin, array)), array


@pytest.mark.parametrize("name", [name for name in WITH_WEIGHTS if name != "parquet"])
def test_gzipped_is_the_same(tmp_path, name):
    path = WITH_WEIGHTS[name](tmp_path, written.make())
    packed = tmp_path / f"{path.name}.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert_same(read_trace(path), read_trace(packed))


def test_a_trace_of_finemoes_own(tmp_path):
    one = read_trace(written.write_csv(tmp_path / "a.csv", written.make()))
    one.save(tmp_path / "kept")
    found = import_trace(tmp_path / "kept", None, Options())
    assert found.format == "finemoe"
    assert_same(found.trace, one)


def test_weights_in_half_precision_come_back_as_they_are(tmp_path):
    one = read_trace(written.write_csv(tmp_path / "a.csv", written.make()))
    path = tmp_path / "again.npz"
    np.savez(path, expert_ids=one.expert_ids, expert_probs=one.expert_probs, offsets=one.offsets, phase=one.phase)
    assert_same(read_trace(path), one)


def test_unknown_files_and_formats(tmp_path):
    (tmp_path / "poem.txt").write_text("Rough winds do shake\nthe darling buds of May\n")
    with pytest.raises(FinemoeError, match=r"poem.txt: unknown format; known: finemoe, gpt-oss, .*csv"):
        read_trace(tmp_path / "poem.txt")
    with pytest.raises(FinemoeError, match="unknown format 'xml'; known: finemoe, "):
        read_trace(tmp_path / "poem.txt", "xml")
    with pytest.raises(FinemoeError, match=r"none.csv: no such file"):
        read_trace(tmp_path / "none.csv")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(FinemoeError, match="empty: unknown format"):
        read_trace(tmp_path / "empty")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FinemoeError, match="folder: is a folder, but not one of gpt-oss or flame-moe"):
        read_trace(tmp_path / "folder")
    (tmp_path / "other.json").write_text(json.dumps({"name": "x"}))
    with pytest.raises(FinemoeError, match=r"other.json: unknown format"):
        read_trace(tmp_path / "other.json")
    assert len(set(FORMATS)) == len(FORMATS) >= 13


def test_a_broken_gzip_is_named(tmp_path):
    path = written.write_csv(tmp_path / "a.csv", written.make())
    packed = tmp_path / "a.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes())[:-40])
    with pytest.raises(FinemoeError, match=r"a.csv.gz: damaged, or of another format"):
        read_trace(packed)


def test_the_number_of_experts(tmp_path):
    """Stated in the file, or given, or the model's, or the greatest id + 1; and never contradicted."""
    one = written.make(experts=5)
    path = written.write_route_trace(tmp_path / "a.csv", one, num_experts=8)
    assert import_trace(path, None, Options()).experts_from == "stated in the file"
    with pytest.raises(FinemoeError, match="states 8 experts, not the given 9"):
        read_trace(path, num_experts=9)
    plain = written.write_csv(tmp_path / "b.csv", one)
    inferred = import_trace(plain, None, Options())
    assert (inferred.trace.num_experts, inferred.experts_from) == (int(one.ids.max()) + 1, "the greatest id + 1")
    given = import_trace(plain, None, Options(num_experts=60))
    assert (given.trace.num_experts, given.experts_from) == (60, "given")
    of_model = import_trace(plain, None, Options(model="mixtral-8x7b"))
    assert (of_model.trace.num_experts, of_model.experts_from) == (8, "the model's configuration")
    assert read_trace(plain, model="a name only").model == "a name only"
    with pytest.raises(FinemoeError, match=r"token \d, layer \d: expert 4, but there are 3 experts \(given\)"):
        read_trace(plain, num_experts=3)
