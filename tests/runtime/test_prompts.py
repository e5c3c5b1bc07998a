"""Prompts as users hold them, and tokenizers that give more or less than `generate` takes, in `record` and `finemoe run`."""

import json
import shutil
from enum import Enum

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import finemoe
from finemoe.cli import app
from finemoe.errors import FinemoeError
from finemoe.paths import ROOT
from finemoe.runtime.prompts import as_batch, encode
from tests.runtime.models import build
from tests.runtime.recordings import Characters, differences

TEXTS = ["hello", "good night", "x"]
CHAT = [{"role": "user", "content": "hello"}]
FORMS = {
    "list": TEXTS,
    "tuple": tuple(TEXTS),
    "generator": (text for text in TEXTS),
    "array of texts": np.array(TEXTS),
    "array of objects": np.array(TEXTS, dtype=object),
    "series": pd.Series(TEXTS, index=[7, 8, 9]),
    "series of strings": pd.Series(TEXTS, dtype="string"),
    "categories": pd.Series(TEXTS, dtype="category"),
    "index": pd.Index(TEXTS),
    "values of a dict": dict(enumerate(TEXTS)).values(),
    "keys of a dict": dict.fromkeys(TEXTS).keys(),
    "members of an enumeration": list(Enum("Prompts", {f"P{n}": text for n, text in enumerate(TEXTS)}, type=str)),
    "column of a dataset": datasets.Dataset.from_dict({"prompt": TEXTS})["prompt"],
}
REFUSED = {
    "one text": ("hello", "not one text"),
    "a mapping": ({"prompt": TEXTS}, "not dict"),
    "a set": ({"a", "b"}, "not {'"),
    "bytes": (b"hello", "not b'hello'"),
    "a number": (3, "not 3"),
    "nothing": (None, "not None"),
    "a table": (pd.DataFrame({"prompt": TEXTS}), "not DataFrame of 2 dimensions; give the texts, such as one column"),
    "an array of rows": (np.array([TEXTS]), "not ndarray of 2 dimensions"),
    "a dataset": (datasets.Dataset.from_dict({"prompt": TEXTS}), "prompt 0 is dict"),
    "no prompts": ([], "at least one prompt"),
    "an empty generator": ((text for text in ()), "at least one prompt"),
    "an empty text": (["a", ""], "none of them empty; prompt 1 is"),
    "a missing text": (["a", None], "prompt 1 is None"),
    "a missing value": (pd.Series(["a", float("nan")]), "prompt 1 is nan"),
    "pandas' missing value": (pd.Series(["a", None], dtype="string"), "prompt 1 is <NA>"),
    "numbers": ([1, 2], "prompt 0 is 1"),
    "token ids": ([[1, 2, 3]], "prompt 0 is list"),
    "nested texts": ([["a", "b"]], "prompt 0 is list"),
    "half a character": (["a", "b\udcff"], r"prompt 1 holds '\\udcff' at character 1, which is not valid UTF-8"),
    "bytes inside": (["a", b"b"], "prompt 1 is b'b'"),
    "one conversation": (CHAT, r"prompt 0 is dict; give its text, or \[messages\] for one conversation"),
    "half a message": ([[{"role": "user"}]], "prompt 0 is list"),
    "an empty conversation": (["a", []], "prompt 1 is list"),
}


def recorded(prompts, tokenizer=None, **options):
    return finemoe.record(build("mixtral"), prompts, tokenizer=tokenizer or Characters(), max_new_tokens=2, **options)


def tokens_of(trace) -> list[list[int]]:
    return [trace.tokens[trace.rows_of(request)].tolist() for request in range(trace.num_requests)]


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    return tokens_of(recorded(TEXTS))


@pytest.mark.parametrize("form", FORMS)
def test_texts_are_taken_as_they_are_held(form, expected):
    assert tokens_of(recorded(FORMS[form], splits=np.array(["history"] * 3), request_ids=pd.Series([1, 2, 3]))) == expected


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_no_list_of_texts_is_named_in_one_line(form):
    prompts, message = REFUSED[form]
    with pytest.raises(FinemoeError, match=message) as caught:
        recorded(prompts)
    assert "\n" not in str(caught.value)


class Chat(Characters):
    """Whose chat template writes every message as role and content."""

    chat_template = "roles"

    def apply_chat_template(self, messages, add_generation_prompt, return_dict, return_tensors):
        assert (add_generation_prompt, return_dict, return_tensors) == (True, True, "pt")
        if messages[0]["role"] == "nobody":
            raise RuntimeError("unknown role\nat line 3")
        return self(["".join(f"{one['role']}:{one['content']};" for one in messages) + "assistant:"])


@pytest.mark.parametrize("held", [list, tuple, lambda messages: np.array(messages, dtype=object)], ids=["list", "tuple", "array"])
def test_conversations_go_through_the_chat_template(held):
    conversation = [{"role": "system", "content": "be brief"}, *CHAT]
    trace = recorded([held(conversation), "a text"], Chat())
    texts = ["system:be brief;user:hello;assistant:", "a text"]
    assert tokens_of(trace) == tokens_of(recorded(texts))
    with pytest.raises(FinemoeError, match=r"prompt 1: the chat template refuses it \(unknown role\)"):
        recorded(["a", [{"role": "nobody", "content": ""}]], Chat())
    with pytest.raises(FinemoeError, match="prompt 1 is a list of chat messages, but this tokenizer has no chat template"):
        recorded(["a", CHAT])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"request_ids": "abc"}, "request_ids is one text"),
        ({"request_ids": ["a", None, "c"]}, "request_ids holds None for prompt 1"),
        ({"splits": [0.5, 0.5, 0.5]}, "splits holds 0.5 for prompt 0"),
    ],
)
def test_names_that_no_trace_can_hold_are_named(names, message):
    with pytest.raises(FinemoeError, match=message):
        recorded(TEXTS, **names)


def test_names_of_any_kind_can_be_saved(tmp_path):
    names = {"request_ids": np.array([4, 5, 6]), "splits": pd.Series(["served"] * 3)}
    recorded(TEXTS, **names).save(tmp_path / "a.trace")
    trace = finemoe.RoutingTrace.load(tmp_path / "a.trace")
    assert (trace.request_ids, trace.splits) == (("4", "5", "6"), ("served",) * 3)


class Gives(Characters):
    """Gives more, or less, than input ids and a mask."""

    def __init__(self, change):
        self._change = change

    def __call__(self, prompts, return_tensors="pt", padding=False):
        return self._change(super().__call__(prompts))


def _only_ids(given):
    return {"input_ids": given["input_ids"]}


def _more(given):
    return given | {
        "token_type_ids": torch.ones_like(given["input_ids"]),
        "length": [7],
        "position_ids": given["input_ids"] * 0 + 5,
    }


def _lists(given):
    return {name: value.tolist() for name, value in given.items()}


def _flat(given):
    return {name: value[0] for name, value in given.items()}


def _padded_right(given):
    return {name: torch.nn.functional.pad(value, (0, 3)) for name, value in given.items()}


def _padded_left(given):
    return {name: torch.nn.functional.pad(value, (2, 0)) for name, value in given.items()}


def _ragged(given):
    rows = zip(given["input_ids"].tolist(), given["attention_mask"].tolist(), strict=True)
    return {"input_ids": [[token for token, kept in zip(*row, strict=True) if kept] for row in rows], "attention_mask": [[1]]}


@pytest.mark.parametrize("change", [_only_ids, _lists, _flat, _padded_right, _padded_left, _ragged])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_tokenizers_that_give_more_or_less(change, batch_size, expected):
    trace = recorded(TEXTS, Gives(change), batch_size=batch_size)
    assert tokens_of(trace) == expected
    assert max(differences(build("mixtral"), trace)) < 2e-3


def test_only_what_the_model_takes_is_passed_on():
    model = build("mixtral")
    encodings = encode(Gives(_more), TEXTS, 0)
    inputs = as_batch(model, encodings, 9).inputs
    assert sorted(inputs) == ["attention_mask", "input_ids", "position_ids"]
    assert {value.shape for value in inputs.values()} == {(3, 10)}
    assert inputs["input_ids"][2, :9].tolist() == [9] * 9
    assert inputs["attention_mask"].sum(dim=1).tolist() == [5, 10, 1]
    assert inputs["position_ids"][0].tolist() == [0] * 5 + [5] * 5


def test_a_prompt_without_tokens_is_named():
    with pytest.raises(FinemoeError, match="prompt 1 has no tokens: 'good night'"):
        recorded(TEXTS, Gives(lambda given: given if given["input_ids"].shape[1] != 10 else {"input_ids": []}))
    with pytest.raises(FinemoeError, match="without input_ids"):
        recorded(TEXTS, Gives(lambda given: given["input_ids"]))


def _several_rows(given):
    return {name: torch.cat([value[:, :1], value[:, 1:2]]) if value.shape[1] > 1 else value for name, value in given.items()}


def _rows_of_several_lengths(given):
    return {"input_ids": [given["input_ids"][0].tolist(), [1]]}


def _hole(given):
    mask = given["attention_mask"].clone()
    mask[:, 1:-1] = 0
    return given | {"attention_mask": mask}


def _refuses_good(given):
    if given["input_ids"].shape[1] == 10:
        raise TypeError("no such\ntext")
    return given


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_several_rows, "prompt 0: the tokenizer returns several rows of tokens for one text: 'hello'"),
        (_rows_of_several_lengths, "prompt 0: the tokenizer returns several rows of tokens for one text: 'hello'"),
        (_refuses_good, r"prompt 1: the tokenizer refuses it \(no such\): 'good night'"),
        (
            lambda given: given | {"input_ids": given["input_ids"] + 56},
            r"returns token \d+, but the model has embeddings for 0..95",
        ),
    ],
)
def test_tokens_that_no_model_takes_are_named(change, message, batch_size):
    with pytest.raises(FinemoeError, match=message) as caught:
        recorded(TEXTS, Gives(change), batch_size=batch_size)
    assert "\n" not in str(caught.value)


def test_a_mask_inside_a_prompt_is_named():
    with pytest.raises(FinemoeError, match="prompt 0: the tokenizer masks tokens inside it"):
        recorded(TEXTS, Gives(_hole))


@pytest.mark.parametrize("pad", [96, -1])
def test_a_pad_token_without_an_embedding_is_named(pad):
    tokenizer = Characters()
    tokenizer.pad_token_id = pad
    with pytest.raises(FinemoeError, match=f"pad token is {pad}, but the model has embeddings for 0..95 only"):
        recorded(["equal", "sizes"], tokenizer, batch_size=2)
    assert len(tokens_of(recorded(["alone"], tokenizer))) == 1


def test_unsigned_tokens_are_tokens(expected):
    def change(given):
        return {"input_ids": given["input_ids"].numpy().astype(np.uint16), "attention_mask": given["attention_mask"]}

    assert tokens_of(recorded(TEXTS, Gives(change), batch_size=3)) == expected


def test_a_forward_that_another_library_has_wrapped_is_given_its_mask():
    model = build("mixtral")
    forward = model.forward
    model.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    assert "attention_mask" in as_batch(model, encode(Characters(), TEXTS, 0), 0).inputs


def test_padding_that_no_mask_would_hide_is_refused():
    class Maskless(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(96, 4)

        def forward(self, input_ids):
            return self.embedding(input_ids)

    encodings = encode(Characters(), TEXTS, 0)
    with pytest.raises(FinemoeError, match=r"Maskless.forward takes no attention_mask .* use batch_size=1"):
        as_batch(Maskless(), encodings, 0)
    assert as_batch(Maskless(), encodings[:1], 0).inputs.keys() == {"input_ids"}


@pytest.mark.parametrize("tokenizer", [None, "mixtral-mini"])
def test_what_is_no_tokenizer_is_named(tokenizer):
    with pytest.raises(FinemoeError, match="give the model's own, as AutoTokenizer loads it"):
        finemoe.record(build("mixtral"), TEXTS, tokenizer=tokenizer, max_new_tokens=2)


# The command line, on a copy of a miniature.


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(ROOT / "data/models/miniatures/mixtral-mini", tmp_path / "model")


def changed(folder, file, **fields):
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | fields))


def run(folder, *options):
    arguments = ["run", "-m", str(folder), "-p", "What is a river?", "--max-new-tokens", "4", "--policy", "on-demand", *options]
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize("names", [["input_ids", "token_type_ids", "attention_mask"], ["input_ids"]])
def test_run_and_record_pass_on_what_the_model_takes(folder, names, tmp_path):
    expected = json.loads(run(folder, "--json").stdout)["text"]
    changed(folder, "tokenizer_config.json", model_input_names=names)
    assert json.loads(run(folder, "--json").stdout)["text"] == expected
    output = str(tmp_path / "a.trace")
    done = CliRunner().invoke(app, ["record", "-m", str(folder), "--limit", "2", "--max-new-tokens", "2", "-o", output, "--json"])
    assert json.loads(done.stdout)["requests"] == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"num_beams": 2},
        {"return_dict_in_generate": True},
        {"use_cache": False},
        {"stop_strings": ["zzz"]},
        {"guidance_scale": 1.5},
    ],
    ids=str,
)
def test_run_follows_the_models_generation_config(folder, fields):
    if not (folder / "generation_config.json").exists():
        (folder / "generation_config.json").write_text("{}")
    changed(folder, "generation_config.json", **fields)
    for options in ([], ["--json"]):
        done = run(folder, *options)
        assert done.exit_code == 0, done.exception
        assert "What is a river?" in done.stdout


def test_run_says_in_one_line_what_generate_refuses(folder):
    changed(folder, "generation_config.json", prompt_lookup_num_tokens=2, use_cache=False)
    error = run(folder).exception
    assert isinstance(error, FinemoeError)
    assert "MixtralForCausalLM.generate" in str(error)
    assert "\n" not in str(error)
