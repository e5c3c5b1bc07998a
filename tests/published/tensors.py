"""Names, shapes and types of the tensors of five checkpoints as published, and random values for them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from tests.published.configurations import VOCABULARY

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def qwen15(config: dict[str, Any]) -> Shapes:
    yield from _decoder(config, _attention(config, biases="qkv"), _sparse(config, shared=True))


def qwen3(config: dict[str, Any]) -> Shapes:
    yield from _decoder(config, _attention(config, norms=True), _sparse(config))


def olmoe(config: dict[str, Any]) -> Shapes:
    yield from _decoder(config, _attention(config, norms=True), _sparse(config))


def deepseek(config: dict[str, Any]) -> Shapes:
    hidden, num_heads, rank = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    plain, rotated, value = (config[name] for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    attention = [
        ("self_attn.q_proj.weight", (num_heads * (plain + rotated), hidden)),
        ("self_attn.kv_a_proj_with_mqa.weight", (rank + rotated, hidden)),
        ("self_attn.kv_a_layernorm.weight", (rank,)),
        ("self_attn.kv_b_proj.weight", (num_heads * (plain + value), rank)),
        ("self_attn.o_proj.weight", (hidden, num_heads * value)),
    ]
    inner = config["moe_intermediate_size"]
    sparse = [
        ("mlp.gate.weight", (config["n_routed_experts"], hidden)),
        *_experts(config["n_routed_experts"], hidden, inner),
        *_projections("mlp.shared_experts", hidden, inner * config["n_shared_experts"]),
    ]
    dense = list(_projections("mlp", hidden, config["intermediate_size"]))
    yield from _decoder(config, attention, sparse, dense, config["first_k_dense_replace"])


def gpt_oss(config: dict[str, Any]) -> Shapes:
    """Experts are fused and in MXFP4: blocks of 32 values in 16 bytes, and a scale each."""
    hidden, inner, num_experts = config["hidden_size"], config["intermediate_size"], config["num_local_experts"]
    sparse = [("mlp.router.weight", (num_experts, hidden)), ("mlp.router.bias", (num_experts,))]
    for name, outputs, inputs in (("gate_up_proj", 2 * inner, hidden), ("down_proj", hidden, inner)):
        sparse += [
            (f"mlp.experts.{name}_blocks", (num_experts, outputs, inputs // 32, 16)),
            (f"mlp.experts.{name}_scales", (num_experts, outputs, inputs // 32)),
            (f"mlp.experts.{name}_bias", (num_experts, outputs)),
        ]
    attention = [*_attention(config, biases="qkvo"), ("self_attn.sinks", (config["num_attention_heads"],))]
    yield from _decoder(config, attention, sparse)


def values_of(shapes: Shapes, num_words: int, seed: int) -> dict[str, torch.Tensor]:
    """Random values that keep activations near 1, so that tokens and routing vary.

    Args:
        num_words: the tokens that are text, which come first; only these are ever generated.
    """
    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in shapes:
        if name.endswith("_blocks"):
            made[name] = torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))
        elif name.endswith("_scales"):  # 2 to the power of this, less 127
            made[name] = torch.from_numpy(rng.integers(121, 124, shape, dtype=np.uint8))
        else:
            made[name] = torch.from_numpy(_values(name, shape, rng)).to(torch.bfloat16)
    made["lm_head.weight"][num_words:] = 0
    return made


def _values(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(shape, dtype=np.float32)
    if name.endswith("norm.weight"):
        return 1 + noise / 10
    if len(shape) == 1 or name.endswith("_bias"):
        return noise / 10
    gain = 1.0 if "embed_tokens" in name else (4.0 if name == "lm_head.weight" else 1.5) / shape[-1] ** 0.5
    return noise * np.float32(gain)


def _decoder(config: dict[str, Any], attention: Any, sparse: Any, dense: Any = (), num_dense: int = 0) -> Shapes:
    hidden = config["hidden_size"]
    attention, sparse = list(attention), list(sparse)
    yield "model.embed_tokens.weight", (VOCABULARY, hidden)
    for layer in range(config["num_hidden_layers"]):
        norms = [("input_layernorm.weight", (hidden,)), ("post_attention_layernorm.weight", (hidden,))]
        for name, shape in (*norms, *attention, *(dense if layer < num_dense else sparse)):
            yield f"model.layers.{layer}.{name}", shape
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (VOCABULARY, hidden)


def _attention(config: dict[str, Any], biases: str = "", norms: bool = False) -> Shapes:
    hidden, num_heads, num_pairs = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    width = config.get("head_dim", hidden // num_heads)
    widths = {"q": num_heads * width, "k": num_pairs * width, "v": num_pairs * width}
    for part, outputs in widths.items():
        yield f"self_attn.{part}_proj.weight", (outputs, hidden)
    yield "self_attn.o_proj.weight", (hidden, num_heads * width)
    for part in biases:
        yield f"self_attn.{part}_proj.bias", (widths.get(part, hidden),)
    if norms:  # OLMoE normalises all heads together, Qwen3 each head
        for part in "qk":
            yield f"self_attn.{part}_norm.weight", (width if "head_dim" in config else widths[part],)


def _sparse(config: dict[str, Any], shared: bool = False) -> Shapes:
    hidden = config["hidden_size"]
    yield "mlp.gate.weight", (config["num_experts"], hidden)
    yield from _experts(config["num_experts"], hidden, config.get("moe_intermediate_size", config["intermediate_size"]))
    if shared:
        yield from _projections("mlp.shared_expert", hidden, config["shared_expert_intermediate_size"])
        yield "mlp.shared_expert_gate.weight", (1, hidden)


def _experts(num_experts: int, hidden: int, inner: int) -> Shapes:
    for expert in range(num_experts):
        yield from _projections(f"mlp.experts.{expert}", hidden, inner)


def _projections(stem: str, hidden: int, inner: int) -> Shapes:
    yield f"{stem}.gate_proj.weight", (inner, hidden)
    yield f"{stem}.up_proj.weight", (inner, hidden)
    yield f"{stem}.down_proj.weight", (hidden, inner)
