"""Router logits made by Transformers: saved in three ways they are one trace, whose experts the model really used."""

import gzip

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from finemoe.errors import FinemoeError
from finemoe.importers import Options, import_trace, read_trace
from tests.importers.written import assert_same

LAYERS, EXPERTS, TOP_K, TOKENS = 3, 6, 2, 11


@pytest.fixture(scope="module")
def recorded():
    """(router logits of a small Qwen3-MoE, [T, L, K] experts and weights that its routers handed to the experts)."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "moe_intermediate_size": 8,
        "num_hidden_layers": LAYERS,
        "vocab_size": 50,
    }
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    config = Qwen3MoeConfig(**sizes, **heads, num_experts=EXPERTS, num_experts_per_tok=TOP_K, norm_topk_prob=False)
    model = Qwen3MoeForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    chosen = []
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda module, inputs, outputs: chosen.append(outputs))
    with torch.no_grad():
        logits = model(torch.arange(TOKENS)[None], output_router_logits=True).router_logits
    ids = torch.stack([indices for _, _, indices in chosen], dim=1).numpy()
    weights = torch.stack([scores for _, scores, _ in chosen], dim=1).numpy()
    return logits, ids, weights


def write(path, tensors, suffix):
    named = {f"router_logits_{number}": tensor.contiguous() for number, tensor in enumerate(tensors)}
    if suffix == "pt":
        torch.save(tuple(tensors), path)
    elif suffix == "safetensors":
        save_file(named, path)
    else:
        np.savez(path, **{name: tensor.float().numpy() for name, tensor in reversed(named.items())})
    return path


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "npz"])
def test_the_experts_are_those_that_the_model_used(tmp_path, recorded, suffix):
    logits, ids, weights = recorded
    found = import_trace(write(tmp_path / f"a.{suffix}", logits, suffix), None, Options(top_k=TOP_K))
    trace = found.trace
    assert (found.format, found.experts_from, trace.num_experts) == ("router-logits", "stated in the file", EXPERTS)
    np.testing.assert_array_equal(trace.expert_ids, ids)
    np.testing.assert_allclose(trace.expert_probs, weights, rtol=2e-3)  # not renormalised: the whole distribution is known
    exact = torch.stack([layer.double().softmax(-1) for layer in logits], dim=1).numpy()
    np.testing.assert_allclose(trace.probs, exact, rtol=2e-3, atol=1e-6)
    assert_same(trace, read_trace(write(tmp_path / "b.pt", logits, "pt"), top_k=TOP_K))
    assert any("K most probable experts are taken" in note for note in found.notes)


def test_blocks_prompts_and_bfloat16(tmp_path, recorded, monkeypatch):
    from finemoe.importers import layered

    logits, ids, _ = recorded
    whole = read_trace(write(tmp_path / "a.pt", logits, "pt"), top_k=TOP_K, prompt_tokens=8)
    assert (whole.phase.tolist(), whole.step.tolist()) == ([0] * 8 + [1] * 3, [0] * 8 + [1, 2, 3])
    monkeypatch.setattr(layered, "_BLOCK_VALUES", 2 * LAYERS * EXPERTS)
    assert_same(read_trace(write(tmp_path / "b.pt", logits, "pt"), top_k=TOP_K, prompt_tokens=8), whole)
    halved = read_trace(write(tmp_path / "c.safetensors", [layer.bfloat16() for layer in logits], "safetensors"), top_k=TOP_K)
    assert (np.sort(halved.expert_ids) == np.sort(ids)).mean() > 0.9


@torch.no_grad()
def test_routers_that_give_probabilities(tmp_path):
    """Gemma 4's do: rows that sum to 1 are not put through a softmax again."""
    from transformers import AutoModelForCausalLM, Gemma4TextConfig

    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 8, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "global_head_dim": 8}
    experts = {"num_experts": EXPERTS, "top_k_experts": TOP_K, "enable_moe_block": True, "hidden_size_per_layer_input": 0}
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "num_global_key_value_heads": 1}
    model = AutoModelForCausalLM.from_config(Gemma4TextConfig(**sizes, **heads, **experts, **kinds)).eval()
    chosen = []
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.router.proj.weight, std=4)
        layer.router.register_forward_hook(lambda module, inputs, outputs: chosen.append(outputs))
    given = model(torch.arange(1, TOKENS + 1)[None], output_router_logits=True).router_logits
    trace = read_trace(write(tmp_path / "a.pt", given, "pt"), top_k=TOP_K)
    np.testing.assert_array_equal(trace.expert_ids, torch.stack([indices for _, _, indices in chosen], dim=1).numpy())
    np.testing.assert_allclose(trace.probs, torch.stack([shares for shares, _, _ in chosen], dim=1).numpy(), rtol=1e-3, atol=1e-6)


def test_a_dict_with_the_outputs_name(tmp_path, recorded):
    torch.save({"router_logits": recorded[0]}, tmp_path / "a.pt")
    assert read_trace(tmp_path / "a.pt", top_k=TOP_K).num_layers == LAYERS


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda layers: layers, {}, "router logits do not state K; give it with --top-k"),
        (lambda layers: layers, {"top_k": 7}, "K is 7, but routers output only 6 values"),
        (
            lambda layers: layers,
            {"top_k": 2, "num_experts": 8},
            "routers output 6 values, not one for each of 8 experts; such a family",
        ),
        (lambda layers: [layers[0], layers[1][:5]], {"top_k": 2}, r"layer 1 is of shape \[5, 6\], but layer 0 of \[11, 6\]"),
        (lambda layers: [layers[0], layers[1] * torch.nan], {"top_k": 2}, "token 0, layer 1: a value is not finite"),
        (
            lambda layers: [layer.sigmoid() for layer in layers],
            {"top_k": 2},
            "token 0, layer 0: values are in 0..1 and sum to .* neither",
        ),
        (lambda layers: [layer.reshape(1, 11, 3, 2) for layer in layers], {"top_k": 2}, r"layer 0 is of shape \[1, 11, 3, 2\]"),
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_what_is_not_understood_is_refused(tmp_path, recorded, suffix, change, options, message):
    path = write(tmp_path / f"a.{suffix}", change(list(recorded[0])), suffix)
    with pytest.raises(FinemoeError, match=rf"a.{suffix}: {message}"):
        read_trace(path, **options)


def test_files_that_are_none(tmp_path, recorded):
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "a.pt")
    with pytest.raises(FinemoeError, match=r"a.pt: it holds more than tensors, lists and numbers, and is not loaded"):
        read_trace(tmp_path / "a.pt", top_k=2)
    torch.save([1, 2], tmp_path / "b.pt")
    with pytest.raises(FinemoeError, match=r"b.pt: expected a tuple or list of tensors, one for each MoE layer"):
        read_trace(tmp_path / "b.pt", top_k=2)
    path = write(tmp_path / "c.safetensors", recorded[0], "safetensors")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FinemoeError, match=r"c.safetensors: truncated or not a safetensors file"):
        read_trace(path, top_k=2)
    save_file({"lm_head.weight": torch.zeros(2, 2), "norm": torch.zeros(2)}, tmp_path / "d.safetensors")
    with pytest.raises(
        FinemoeError, match=r"d.safetensors: its tensors are named .*; expected one for each MoE layer, as router_log"
    ):
        read_trace(tmp_path / "d.safetensors", top_k=2)
    packed = tmp_path / "e.gz"
    packed.write_bytes(gzip.compress(write(tmp_path / "e.safetensors", recorded[0], "safetensors").read_bytes()))
    with pytest.raises(FinemoeError, match=r"e.gz: .*decompress the file first"):
        read_trace(packed, top_k=2)
