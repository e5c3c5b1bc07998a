"""Logits and greedy tokens are bit-equal to Transformers' eager at every legal cache size (DESIGN 4, "Lossless")."""

import pytest
import torch

import finemoe
from finemoe.models.layers import find_moe_layers
from finemoe.runtime.expert_layout import ExpertLayout
from tests.runtime.models import FAMILIES, build, padded_batch

pytestmark = pytest.mark.timeout(300)  # every cache size

GENERATION = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


def sizes(model) -> tuple[int, int]:
    """(bytes of one expert's record, number of experts)."""
    layers = find_moe_layers(model)
    return ExpertLayout.of(layers[0]).nbytes, sum(layer.num_experts for layer in layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("policy", ["finemoe", "on-demand"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bit_equal_at_every_cache_size(family, policy, dtype):
    model, batch = build(family, dtype), padded_batch()
    assert {layer.experts.config._experts_implementation for layer in find_moe_layers(model)} == {"eager"}
    with torch.no_grad():
        logits, tokens = model(**batch).logits, model.generate(**batch, **GENERATION)
    record_bytes, num_experts = sizes(model)
    for slots in [1, 2, 3, 5, 7, num_experts // 2, num_experts]:
        with finemoe.offload(model, slots * record_bytes, policy), torch.no_grad():
            assert torch.equal(model(**batch).logits, logits), f"{slots} slots"
            assert torch.equal(model.generate(**batch, **GENERATION), tokens), f"{slots} slots"


@pytest.mark.parametrize("rows", [1, 4])
def test_bit_equal_over_a_slow_link(rows):
    model, batch = build("mixtral"), padded_batch(rows)
    with torch.no_grad():
        tokens = model.generate(**batch, **GENERATION)
    record_bytes, _ = sizes(model)
    with finemoe.offload(model, 6 * record_bytes, link="paced:20MB/s") as engine, torch.no_grad():
        assert torch.equal(model.generate(**batch, **GENERATION), tokens)
        report = engine.report()
    assert report.stall_s > 0
    assert report.misses + report.late > 0


def test_history_changes_nothing_about_the_output():
    model, batch = build("qwen2_moe"), padded_batch()
    with torch.no_grad():
        tokens = model.generate(**batch, **GENERATION)
    trace = finemoe.record(model, ["a b", "c d e"], tokenizer=WordTokenizer(), max_new_tokens=5)
    with finemoe.offload(model, 0.25, history=trace) as engine, torch.no_grad():
        assert torch.equal(model.generate(**batch, **GENERATION), tokens)
        assert engine.report().recall_at_k > 0


class WordTokenizer:
    """Turns every character into a token; enough for `record`."""

    padding_side, pad_token_id = "left", 0

    def __call__(self, prompts, return_tensors, padding):
        from transformers import BatchEncoding

        rows = [[2 + ord(character) % 90 for character in prompt] for prompt in prompts]
        width = max(map(len, rows))
        tokens = [[0] * (width - len(row)) + row for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        return BatchEncoding({"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask)})


@pytest.mark.parametrize("policy", ["finemoe", "on-demand"])
def test_layers_of_different_widths_in_one_model(policy):
    """Different numbers of experts and different expert sizes from layer to layer."""
    import copy

    model, batch = build("mixtral"), padded_batch()
    for layer, (num_experts, width) in {1: (4, 48), 2: (12, 24)}.items():
        config = copy.deepcopy(model.config)
        config.num_local_experts, config.intermediate_size = num_experts, width
        torch.manual_seed(layer)
        model.model.layers[layer].mlp = type(model)(config).model.layers[0].mlp.eval()
    layers = find_moe_layers(model)
    assert [layer.num_experts for layer in layers] == [8, 4, 12, 8]
    for layer in layers:
        layer.experts.config._experts_implementation = "eager"
    with torch.no_grad():
        logits, tokens = model(**batch).logits, model.generate(**batch, **GENERATION)
        for share in (0.05, 0.3, 1.0):
            for devices in (1, 3):
                with finemoe.offload(model, max(share, devices / 32), policy, devices=devices) as engine:
                    assert torch.equal(model(**batch).logits, logits)
                    assert torch.equal(model.generate(**batch, **GENERATION), tokens)
                    assert len(engine.report().layer_hits) == 4
        assert torch.equal(model(**batch).logits, logits)
