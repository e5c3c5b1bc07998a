"""The shipped models under every live system: logits and greedy tokens are those of eager, bit for bit."""

from functools import cache

import pytest
import torch

import finemoe
from finemoe.models.layers import find_moe_layers
from finemoe.paths import MINIATURES
from finemoe.policies import LIVE_POLICIES
from finemoe.runtime.loading import load_model

pytestmark = pytest.mark.timeout(300)  # real sizes

NAMES = ("mixtral-mini", "qwen-mini", "phi-mini")
PROMPT = "User: Why is the sea salty?\nAssistant:"


@torch.no_grad()
def outputs(model, tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = tokenizer(PROMPT, return_tensors="pt")
    return model(**inputs).logits, model.generate(**inputs, max_new_tokens=4, do_sample=False)


@cache
def reference(name: str):
    model, tokenizer = load_model(name)
    assert {layer.experts.config._experts_implementation for layer in find_moe_layers(model)} == {"eager"}
    history = finemoe.record(model, ["User: What is a comet?\nAssistant:"], tokenizer=tokenizer, max_new_tokens=4)
    return model, tokenizer, history, outputs(model, tokenizer)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("policy", LIVE_POLICIES)
def test_every_system_is_lossless(name, policy):
    model, tokenizer, history, (logits, tokens) = reference(name)
    for options in ({}, {"asynchronous": True}, {"history": history, "asynchronous": False}):
        with finemoe.offload(model, 0.25, policy, **options) as engine:
            found_logits, found_tokens = outputs(model, tokenizer)
            report = engine.report()
        assert torch.equal(found_logits, logits)
        assert torch.equal(found_tokens, tokens)
        assert report.accesses == report.hits + report.late + report.misses > 0


def test_all_of_them_are_tested():
    assert {path.name for path in MINIATURES.iterdir() if path.is_dir()} == set(NAMES)
