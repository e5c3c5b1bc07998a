"""Parquet, made by pyarrow: long rows, lists of K, and what is refused; without pyarrow one line says what to install."""

import sys

import pytest

from finemoe.errors import FinemoeError
from finemoe.importers import Options, import_trace, parquet, read_trace
from tests.importers.written import COLUMNS, assert_is, assert_same, make, write_csv

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq


def write(path, columns):
    pq.write_table(pa.table(columns), path, row_group_size=5)
    return path


def long_columns(one):
    return dict(zip(COLUMNS, map(list, zip(*one.long_rows(), strict=True)), strict=True))


def list_columns(one):
    rows = [row for row in one.long_rows() if row[4] == 0]
    keys = dict(zip(("request", "token", "phase", "layer"), map(list, zip(*[row[:4] for row in rows], strict=True)), strict=True))
    order = [(number, token, layer) for number, token, _, layer, *_ in rows]
    first = dict(zip((0, 1), one.offsets, strict=False))
    experts = [one.ids[first[number] + token, layer].tolist() for number, token, layer in order]
    weights = [one.weights[first[number] + token, layer].tolist() for number, token, layer in order]
    return {**keys, "topk_ids": experts, "topk_weights": weights}


@pytest.mark.parametrize("columns", [long_columns, list_columns])
def test_both_forms(tmp_path, columns, monkeypatch):
    one = make()
    path = write(tmp_path / "a.parquet", columns(one))
    found = import_trace(path, None, Options(num_experts=7))
    assert found.format == "parquet"
    assert_is(found.trace, one)
    assert_same(found.trace, read_trace(write_csv(tmp_path / "a.csv", one), num_experts=7))
    monkeypatch.setattr(parquet, "_BLOCK_ROWS", 4)
    assert_same(found.trace, read_trace(path, num_experts=7))


def changed(name, place, value):
    def change(columns):
        columns[name][place] = value
        return columns

    return change


@pytest.mark.parametrize(
    ("columns", "change", "message"),
    [
        (long_columns, changed("expert", 6, None), "row 7: expert is empty"),
        (long_columns, changed("expert", 6, -1), "row 7: expert is -1; it counts from 0"),
        (long_columns, changed("weight", 6, float("nan")), "row 7: a weight is nan"),
        (long_columns, changed("phase", 6, "later"), "row 7: phase is 'later'; expected prefill or decode"),
        (long_columns, lambda columns: columns | {"pos": columns["token"]}, "columns 'token' and 'pos' both hold the token"),
        (long_columns, lambda columns: {"expert": [1]}, "no column holds the layer; its columns are expert"),
        (list_columns, changed("topk_ids", 6, [1]), "row 7: topk_ids has another number of entries than row"),
    ],
)
def test_what_is_wrong_is_named_with_its_row(tmp_path, columns, change, message):
    path = write(tmp_path / "a.parquet", change(columns(make())))
    with pytest.raises(FinemoeError, match=rf"a.parquet: {message}"):
        read_trace(path)


def test_damaged(tmp_path):
    path = write(tmp_path / "a.parquet", long_columns(make()))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FinemoeError, match=r"a.parquet: damaged, or not a Parquet file"):
        read_trace(path)


def test_without_pyarrow(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", long_columns(make()))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(FinemoeError, match=r"reading Parquet needs pyarrow, which is not installed; .*finemoe\[artifact\]"):
        read_trace(path)
