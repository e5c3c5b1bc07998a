"""vLLM's responses, written after docs/training/routed_experts_replay.md of v0.21 and the base64 .npy of v0.22 and later."""

import gzip
import json

import numpy as np
import pytest

from finemoe.errors import FinemoeError
from finemoe.importers import Options, import_trace, read_trace
from tests.importers.written import Written, assert_is, assert_same, make, npy_as_base64, vllm_responses, write_jsonl


def listed(one: Written) -> list[dict]:
    """As v0.21 answers: nested lists, the prompt's beside the choices, and of what was generated one row less here."""
    return [
        {
            "id": f"cmpl-{number}",
            "model": "tiny",
            "choices": [{"index": 0, "text": "...", "routed_experts": ids[prompt:].tolist()}],
            "usage": {"prompt_tokens": prompt, "completion_tokens": len(ids) - prompt + 1},
            "prompt_routed_experts": ids[:prompt].tolist(),
        }
        for number, ids, _, prompt in one.requests()
    ]


def with_ids(one: Written) -> list[dict]:
    """As /inference/v1/generate answers: ids of the generated tokens, and no usage."""
    return [
        {
            "request_id": f"cmpl-{number}",
            "choices": [{"token_ids": [9] * (len(ids) - prompt + 1), "routed_experts": npy_as_base64(ids.astype(np.uint16))}],
        }
        for number, ids, _, prompt in one.requests()
    ]


@pytest.mark.parametrize("form", [vllm_responses, listed, with_ids])
def test_every_version(tmp_path, form):
    one = make()
    found = import_trace(write_jsonl(tmp_path / "a.jsonl", form(one)), None, Options())
    assert found.format == "vllm"
    assert_is(found.trace, one, has_weights=False)
    assert found.trace.request_ids == ("cmpl-0", "cmpl-1")
    assert found.trace.model == ("" if form is with_ids else "tiny")


def test_documents_and_gzip(tmp_path):
    one = make()
    lines = write_jsonl(tmp_path / "a.jsonl", vllm_responses(one))
    (tmp_path / "b.json").write_text(json.dumps(vllm_responses(one), indent=2))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.read_bytes()))
    (tmp_path / "d.json").write_text(json.dumps(vllm_responses(one)[0], indent=2))
    for name in ("b.json", "c.jsonl.gz"):
        assert_same(read_trace(tmp_path / name), read_trace(lines))
    assert read_trace(tmp_path / "d.json").num_requests == 1


def test_several_choices_share_a_prompt(tmp_path):
    one = make()
    response = listed(one)[0]
    response["choices"] = [{"index": index, "routed_experts": one.ids[3 + index : 5].tolist()} for index in range(2)]
    trace = read_trace(write_jsonl(tmp_path / "a.jsonl", [response]))
    assert (trace.request_ids, trace.offsets.tolist()) == (("cmpl-0/0", "cmpl-0/1"), [0, 5, 9])
    assert trace.phase.tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 1]


def test_dense_layers_hold_zeros_and_are_left_out(tmp_path):
    one = make()
    ids = np.concatenate([np.zeros_like(one.ids[:, :1]), one.ids], axis=1)
    path = write_jsonl(tmp_path / "a.jsonl", vllm_responses(Written(ids, one.weights)))
    found = import_trace(path, None, Options())
    assert_is(found.trace, one, has_weights=False)
    assert found.notes == ("layers without routing are left out (0); the others keep their order",)


def test_rows_that_a_prefix_cache_had_and_answers_without_routing(tmp_path):
    one = make()
    responses = listed(one)
    responses[0]["prompt_routed_experts"][:2] = np.full((2, 3, 2), -1).tolist()
    responses.append({"id": "late", "choices": [{"index": 0, "routed_experts": None}], "prompt_routed_experts": None})
    found = import_trace(write_jsonl(tmp_path / "a.jsonl", responses), None, Options())
    assert found.trace.phase.tolist() == [0, 1, 1, 0, 1, 1, 1]
    assert found.notes == (
        "1 answers without routing are left out",
        "2 prompt tokens that came from a cache, and have no routing, are left out",
    )


def test_rows_that_were_asked_to_be_left_out(tmp_path):
    """With `routed_experts_prompt_start` the first rows of a prompt are missing; what was generated says how many are left."""
    one = make()
    response = vllm_responses(one)[0]
    response["choices"][0]["routed_experts"] = npy_as_base64(one.ids[1:5])
    assert read_trace(write_jsonl(tmp_path / "a.jsonl", [response])).phase.tolist() == [0, 0, 1, 1]


def test_nothing_says_how_long_the_prompt_is(tmp_path):
    one = make()
    responses = [{"choices": response["choices"]} for response in vllm_responses(one)]
    found = import_trace(write_jsonl(tmp_path / "a.jsonl", responses), None, Options())
    assert found.trace.phase.tolist() == [1] * 9
    assert "the file does not state which rows are prompts" in found.notes[0]


def changed(**changes):
    def change(responses):
        responses[1]["choices"][0] |= changes
        return responses

    return change


IDS = make().ids
CASES = [
    (changed(routed_experts="k05VTVBZ!"), "line 2: routed_experts is not base64"),
    (
        changed(routed_experts=npy_as_base64(IDS[5:9])[:-20]),
        "line 2: (routed_experts is not base64|array 'routed_experts' is damaged)",
    ),
    (
        changed(routed_experts=npy_as_base64(IDS[:, 0])),
        r"line 2: has experts of shape \[9, 2\]|line 2: has routing of 9",
    ),
    (
        changed(routed_experts=npy_as_base64(IDS)),
        "line 2: has routing of 9 tokens for 1 prompt and 4 generated tokens; expected all but one",
    ),
    (
        changed(routed_experts=npy_as_base64(IDS[5:9, :2])),
        "line 2: has 2 layers x 2 experts, but the first request 3",
    ),
    (
        changed(routed_experts=npy_as_base64(-IDS[5:9] - 1)),
        "line 2: token .*: expert -7 means that this token's routing",
    ),
    (changed(routed_experts=[[[1, 2], [1]]]), "line 2: routed_experts holds lists of different lengths"),
    (changed(routed_experts=[[1, 2]]), r"line 2: routed_experts is of shape \[1, 2\]"),
    (lambda responses: [responses[0], {"error": "busy"}], "line 2 has no list of choices; expected a response of vLLM"),
    (lambda responses: [responses[0], 5], "line 2 is not a JSON object"),
]


@pytest.mark.parametrize(("change", "message"), CASES)
def test_what_is_wrong_is_named_with_its_line(tmp_path, change, message):
    path = write_jsonl(tmp_path / "a.jsonl", change(vllm_responses(make())))
    with pytest.raises(FinemoeError, match=rf"a.jsonl: ({message})"):
        read_trace(path)
