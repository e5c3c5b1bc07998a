"""SGLang's responses, written after its state_capturer and routed_experts_wire: flat numbers whose shape must be known."""

import base64
import gzip
import json

import numpy as np
import pytest

from finemoe.errors import FinemoeError
from finemoe.importers import Options, import_trace, read_trace
from tests.importers.written import Written, assert_is, assert_same, make, sglang_responses, write_jsonl

SHAPE = {"num_layers": 3, "top_k": 2}


def packed(ids: np.ndarray, dtype=np.int32) -> str:
    return base64.b64encode(ids.astype(dtype).tobytes()).decode()


def of_openais_kind(one: Written, place: str = "sgl_ext") -> list[dict]:
    return [
        {
            "id": f"req-{number}",
            "model": "tiny",
            "choices": [{"index": 0, "text": "...", place: {"routed_experts": packed(ids)}}],
            "usage": {"prompt_tokens": prompt, "completion_tokens": len(ids) - prompt + 1},
        }
        for number, ids, _, prompt in one.requests()
    ]


def beside_the_choices(one: Written) -> list[dict]:
    responses = of_openais_kind(one)
    return [{**response, "sglext": response["choices"][0].pop("sgl_ext")} for response in responses]


@pytest.mark.parametrize("form", [sglang_responses, of_openais_kind, beside_the_choices])
def test_every_endpoint(tmp_path, form):
    one = make()
    found = import_trace(write_jsonl(tmp_path / "a.jsonl", form(one)), None, Options(**SHAPE))
    assert found.format == "sglang"
    assert_is(found.trace, one, has_weights=False)
    assert found.trace.request_ids == ("req-0", "req-1")


def test_batches_narrow_types_and_gzip(tmp_path):
    one = make()
    lines = write_jsonl(tmp_path / "a.jsonl", sglang_responses(one))
    narrow = sglang_responses(one)
    for response, (_, ids, _, _) in zip(narrow, one.requests(), strict=True):
        response["meta_info"] |= {"routed_experts": packed(ids, np.uint8), "routed_experts_dtype": "uint8"}
    (tmp_path / "b.json").write_text(json.dumps(narrow))  # a batch's answers are a list
    (tmp_path / "c.jsonl").write_text(json.dumps(narrow) + "\n")
    (tmp_path / "d.gz").write_bytes(gzip.compress(lines.read_bytes()))
    for name in ("b.json", "c.jsonl", "d.gz"):
        assert_same(read_trace(tmp_path / name, **SHAPE), read_trace(lines, **SHAPE))


def test_rows_from_a_start_on(tmp_path):
    one = make()
    response = sglang_responses(one)[0]
    response["meta_info"] |= {"routed_experts": packed(one.ids[2:5]), "routed_experts_start_len": 2}
    assert read_trace(write_jsonl(tmp_path / "a.jsonl", [response]), **SHAPE).phase.tolist() == [0, 1, 1]


def test_the_models_configuration_says_the_shape(tmp_path):
    """DeepSeek-V3 has 61 decoder layers, 3 of them dense, which hold zeros."""
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((9, 61, 256)), axis=-1)[..., :8]
    ids[:, :3] = 0
    one = Written(ids, np.ones(ids.shape, np.float32))
    every = import_trace(write_jsonl(tmp_path / "a.jsonl", sglang_responses(one)), None, Options(model="deepseek-v3"))
    assert (every.trace.num_layers, every.trace.num_experts, every.trace.top_k) == (58, 256, 8)
    assert every.experts_from == "the model's configuration"
    assert every.notes == ("layers without routing are left out (0, 1, 2); the others keep their order",)
    np.testing.assert_array_equal(every.trace.expert_ids, np.sort(ids[:, 3:], axis=-1))
    routing = Written(ids[:, 3:], one.weights[:, 3:])
    assert_same(read_trace(write_jsonl(tmp_path / "b.jsonl", sglang_responses(routing)), model="deepseek-v3"), every.trace)


def test_the_shape_must_be_known(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", sglang_responses(make()))
    for known in ({}, {"top_k": 2}, {"num_layers": 3}, {"model": "a name only"}):
        with pytest.raises(
            FinemoeError, match=r"a.jsonl: line 1: SGLang's payload is flat .* give them with --layers and --top-k"
        ):
            read_trace(path, **known)


def changed(**changes):
    def change(responses):
        responses[1]["meta_info"] |= changes
        return responses

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(routed_experts=packed(make().ids)[:-7]), r"line 2: (routed_experts is not base64|routed_experts has \d+ bytes)"),
        (
            changed(routed_experts=packed(make().ids.reshape(-1)[:11])),
            "line 2: routed_experts has 11 numbers, which is not a multiple of 3",
        ),
        (changed(routed_experts=packed(make().ids)), "line 2: has routing of 9 tokens for 1 prompt and 4 generated tokens"),
        (changed(routed_experts_dtype="int4"), "line 2: routed_experts_dtype is 'int4'; known are int32, uint16, uint8"),
        (
            changed(routed_experts=packed(np.full((4, 3, 2), 255))),
            "line 2: expert 255 fills slots of fused shared experts; record with",
        ),
        (
            changed(routed_experts=packed(-make().ids[5:9] - 1)),
            "line 2: token .* means that this token's routing was not",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, change, message):
    path = write_jsonl(tmp_path / "a.jsonl", change(sglang_responses(make())))
    with pytest.raises(FinemoeError, match=rf"a.jsonl: {message}"):
        read_trace(path, **SHAPE)


def test_payloads_that_fit_no_shape_of_the_model(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", sglang_responses(make()))
    with pytest.raises(
        FinemoeError, match=r"line 1: routed_experts has 30 numbers, which is not a multiple of 32 layers x 2 experts"
    ):
        read_trace(path, model="mixtral-8x7b")
