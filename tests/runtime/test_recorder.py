"""What `record` writes down, against hooks and formulas applied by hand."""

import numpy as np
import pytest
import torch

import finemoe
from finemoe.errors import FinemoeError
from finemoe.models.layers import find_moe_layers
from finemoe.traces import DECODE, PREFILL
from tests.runtime.models import FAMILIES, build
from tests.runtime.test_lossless import WordTokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_probabilities_and_selection_are_the_models_own(family):
    model, tokenizer = build(family), WordTokenizer()
    trace = finemoe.record(model, ["hello"], tokenizer=tokenizer, max_new_tokens=4)
    layers = find_moe_layers(model)
    logits, selected = [[] for _ in layers], [[] for _ in layers]
    for layer in layers:
        layer.router.register_forward_hook(lambda m, a, out, i=layer.index: logits[i].append(out[0]))
        layer.experts.register_forward_pre_hook(lambda m, args, i=layer.index: selected[i].append(args[1]))
    tokens = torch.tensor(trace.tokens[None].astype(np.int64))
    with torch.no_grad():
        model(tokens)  # one whole forward over the same tokens routes alike
    for index in range(len(layers)):
        expected = torch.softmax(torch.cat(logits[index]), dim=-1).numpy()
        np.testing.assert_allclose(trace.probs[:, index].astype(np.float32), expected, atol=2e-3)
        wanted = [sorted(row) for row in torch.cat(selected[index]).tolist()]
        assert [sorted(row) for row in trace.expert_ids[:, index].tolist()] == wanted
    table = model.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_allclose(trace.embeddings(), table[trace.tokens], atol=1e-3)


def test_rows_are_the_prompt_and_all_generated_tokens_but_the_last():
    model = build("mixtral")
    trace = finemoe.record(model, ["abc", "defgh"], tokenizer=WordTokenizer(), max_new_tokens=6, min_new_tokens=6)
    assert np.diff(trace.offsets).tolist() == [3 + 5, 5 + 5]
    assert trace.step[:8].tolist() == [0, 0, 0, 1, 2, 3, 4, 5]
    assert trace.phase[:5].tolist() == [PREFILL] * 3 + [DECODE] * 2
    assert [(request, step, rows.stop - rows.start) for request, step, rows in trace.iterations()][:3] == [
        (0, 0, 3),
        (0, 1, 1),
        (0, 2, 1),
    ]


def test_a_batch_records_what_single_requests_record():
    model, prompts = build("qwen2_moe"), ["hello there", "x", "some words"]
    options = {"tokenizer": WordTokenizer(), "max_new_tokens": 5, "min_new_tokens": 5}
    alone = finemoe.record(model, prompts, **options)
    together = finemoe.record(model, prompts, batch_size=3, **options)
    np.testing.assert_array_equal(alone.tokens, together.tokens)
    np.testing.assert_array_equal(alone.expert_ids, together.expert_ids)
    np.testing.assert_allclose(alone.probs.astype(np.float32), together.probs.astype(np.float32), atol=2e-3)


def test_probability_order_and_consistency():
    trace = finemoe.record(build("qwen2_moe"), ["hello"], tokenizer=WordTokenizer(), max_new_tokens=4)
    assert (np.diff(trace.expert_probs.astype(np.float32), axis=-1) <= 0).all()
    gathered = np.take_along_axis(trace.probs, trace.expert_ids.astype(np.int64), axis=-1)
    np.testing.assert_array_equal(gathered, trace.expert_probs)


def test_the_model_is_left_untouched():
    model = build("phimoe")
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    finemoe.record(model, ["hello"], tokenizer=WordTokenizer(), max_new_tokens=2)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks


def test_bad_input_is_named():
    model, tokenizer = build("mixtral"), WordTokenizer()
    with pytest.raises(FinemoeError, match="at least one prompt"):
        finemoe.record(model, [], tokenizer=tokenizer, max_new_tokens=2)
    tokenizer.padding_side = "right"
    with pytest.raises(FinemoeError, match="padding_side='left'"):
        finemoe.record(model, ["a", "b"], tokenizer=tokenizer, max_new_tokens=2, batch_size=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lookahead": (0,)}, r"lookahead is \[0\]; give strides as ascending whole numbers"),
        ({"lookahead": (3, 1)}, "ascending"),
        ({"lookahead": (1.5,)}, "whole numbers"),
        ({"lookahead": (99,)}, "below the number of MoE layers"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_new_tokens": -3}, "max_new_tokens is -3"),
        ({"splits": ["served"]}, "splits has 1 entries for 2 prompts"),
        ({"request_ids": ["a", "b", "c"]}, "request_ids has 3 entries for 2 prompts"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_recorded(change, message):
    with pytest.raises(FinemoeError, match=message):
        finemoe.record(build("mixtral"), ["a", "b"], tokenizer=None, **({"max_new_tokens": 1} | change))


def test_one_text_is_no_list_of_prompts():
    with pytest.raises(FinemoeError, match=r"write \[prompt\]"):
        finemoe.record(build("mixtral"), "What is a list?", tokenizer=None, max_new_tokens=1)
