"""The shipped miniatures load by name, were trained, and write text rather than repetition."""

import json

import pandas as pd
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from finemoe.errors import FinemoeError
from finemoe.models.shipped import NAMES, resolve
from finemoe.paths import MINIATURES

pytestmark = pytest.mark.timeout(300)  # real sizes

PROMPTS = ("User: Give me three tips about a class trip.\nAssistant:", "User: When should I use json.loads?\nAssistant:")
UNIFORM_PERPLEXITY = 2048


@pytest.mark.parametrize("name", NAMES)
def test_perplexity_is_far_below_chance(name):
    facts = json.loads((MINIATURES / name / "training.json").read_text())
    curve = pd.read_csv(MINIATURES / name / "training_curve.csv")
    assert facts["held_out_perplexity"]["conversations"] < UNIFORM_PERPLEXITY / 500
    assert facts["held_out_perplexity"]["documentation"] < UNIFORM_PERPLEXITY / 20
    assert curve.tokens.is_monotonic_increasing
    assert curve.tokens.iloc[-1] == facts["tokens_seen"]
    for column in ("held_out_perplexity_conversations", "held_out_perplexity_documentation"):
        assert curve[column].iloc[-1] < curve[column].iloc[0] / 10


@pytest.mark.parametrize("name", NAMES)
def test_generated_text_varies(name):
    model = AutoModelForCausalLM.from_pretrained(resolve(name))
    tokenizer = AutoTokenizer.from_pretrained(resolve(name))
    batch = tokenizer(list(PROMPTS), padding=True, return_tensors="pt")
    tokens = model.generate(**batch, max_new_tokens=40, min_new_tokens=40, do_sample=False)[:, batch["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    assert texts[0] != texts[1]
    assert all(len(set(row.tolist())) >= 12 for row in tokens), texts


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_small_on_disk(name):
    assert (MINIATURES / name / "model.safetensors").stat().st_size <= 16 * 2**20


def test_names_resolve_or_are_refused(tmp_path):
    assert resolve(str(tmp_path)) == str(tmp_path)
    assert resolve("owner/name") == "owner/name"
    with pytest.raises(FinemoeError, match=r"unknown model 'mixtral-min'; did you mean 'mixtral-mini'\? known: mixtral-mini"):
        resolve("mixtral-min")
