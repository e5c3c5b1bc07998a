"""JSON lines of routing, an object for a request, a token, a layer, or an expert; and what is refused, with its row."""

import gzip
import json

import pytest

from finemoe.errors import FinemoeError
from finemoe.importers import json_lines, read_trace
from tests.importers.written import COLUMNS, assert_is, assert_same, make, request_objects, write_jsonl


def expert_objects(one):
    return [dict(zip(COLUMNS, row, strict=True)) for row in one.long_rows()]


def layer_objects(one):
    return [
        {"seq": n, "pos": t, "is_prompt": t < prompt, "layer": layer, "topk_ids": row.tolist(), "topk_weights": w.tolist()}
        for n, ids, weights, prompt in one.requests()
        for t in range(len(ids))
        for layer, (row, w) in enumerate(zip(ids[t], weights[t].astype(float), strict=True))
    ]


def wide_objects(one):
    return [
        {"request": value["seq"], "token": value["pos"], "is_prompt": value["is_prompt"], "layer": value["layer"]}
        | {f"expert_{k}": expert for k, expert in enumerate(value["topk_ids"])}
        | {f"weight_{k}": weight for k, weight in enumerate(value["topk_weights"])}
        for value in layer_objects(one)
    ]


FORMS = {"request": request_objects, "layer": layer_objects, "expert": expert_objects, "numbered keys": wide_objects}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", [json_lines._BLOCK_VALUES, 5])
def test_every_form(tmp_path, monkeypatch, form, block):
    monkeypatch.setattr(json_lines, "_BLOCK_VALUES", block)
    one = make()
    assert_is(read_trace(write_jsonl(tmp_path / "a.jsonl", FORMS[form](one)), num_experts=7), one)


def test_a_document_and_gzip(tmp_path):
    one = make()
    lines = write_jsonl(tmp_path / "a.jsonl", request_objects(one))
    (tmp_path / "b.json").write_text(json.dumps(request_objects(one), indent=1))
    (tmp_path / "c.json.gz").write_bytes(gzip.compress(json.dumps(request_objects(one)).encode()))
    for other in ("b.json", "c.json.gz"):
        assert_same(read_trace(tmp_path / other), read_trace(lines))


def test_names_and_tokens_in_the_order_of_lines(tmp_path):
    objects = [{"id": 0, "request": name, "experts": [[expert]]} for name, expert in (("x", 3), ("a", 1), ("x", 2))]
    trace = read_trace(write_jsonl(tmp_path / "a.jsonl", objects))
    assert trace.request_ids == ("a", "x")
    assert trace.expert_ids.tolist() == [[[1]], [[3]], [[2]]]


def changed(number: int, **changes):
    def change(objects):
        objects[number] = {name: value for name, value in (objects[number] | changes).items() if value != "gone"}
        return objects

    return change


@pytest.mark.parametrize(
    ("form", "change", "message"),
    [
        (
            request_objects,
            changed(1, expert_ids=[[[1, 2]]]),
            r"row 2: weights of shape \[4, 3, 2\] for experts of shape \[1, 1, 2\]",
        ),
        (request_objects, changed(1, expert_ids=[[[1, 2]]], weights="gone"), r"row 2 lacks 'weights', which the first row has"),
        (request_objects, changed(1, expert_ids="gone"), r"row 2 lacks 'expert_ids'"),
        (request_objects, changed(1, expert_ids=[[[1, 2], [1]]]), r"row 2: expert_ids holds lists of different lengths"),
        (request_objects, changed(1, expert_ids=[[1, 2]]), r"row 2: expert_ids is nested 2 deep"),
        (request_objects, changed(1, expert_ids=[[["a", 2]]]), r"row 2: expert_ids has values that are not whole numbers"),
        (request_objects, changed(1, prompt_tokens=9), r"row 2: has 4 tokens, but 9 prompt tokens"),
        (request_objects, changed(1, prompt_tokens="gone"), r"row 2: states its prompt length but earlier requests do not"),
        (layer_objects, changed(2, topk_ids=[-1, 2]), r"row 3: expert -1; ids start at 0, so this was not recorded"),
        (layer_objects, changed(2, topk_weights=[1, -2]), r"row 3: a weight is -2.0"),
        (layer_objects, changed(2, topk_weights=["x", 2]), r"row 3: topk_weights has values that are not numbers"),
        (layer_objects, changed(2, pos="gone"), r"row 3 lacks 'pos', which the first row has"),
        (layer_objects, changed(2, pos="late"), r"row 3: pos is 'late', which is not a whole number"),
        (
            layer_objects,
            changed(2, topk_ids=[1, 2, 3], topk_weights=[1, 1, 1]),
            r"row 3: topk_ids has 3 experts, but row 1 has 2; K must not change",
        ),
        (expert_objects, changed(5, phase="half"), r"row 6: phase is 'half'; expected prefill or decode"),
    ],
)
def test_what_is_wrong_is_named_with_its_row(tmp_path, form, change, message):
    path = write_jsonl(tmp_path / "a.jsonl", change(form(make())))
    with pytest.raises(FinemoeError, match=rf"a.jsonl: {message}"):
        read_trace(path)


def test_lines_that_are_no_json(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", request_objects(make()))
    path.write_text(path.read_text() + "{oh\n")
    with pytest.raises(FinemoeError, match=r"a.jsonl: line 3 is not JSON"):
        read_trace(path)
    path.write_text('{"expert_ids": [[[1]]]}\n7\n')
    with pytest.raises(FinemoeError, match=r"a.jsonl: row 2 \(line 2\) is not a JSON object"):
        read_trace(path)
    path.write_text('{"expert_ids": [[[[1]]]]}\n')
    with pytest.raises(FinemoeError, match=r"a.jsonl: row 1: its experts are lists nested 4 deep"):
        read_trace(path)
