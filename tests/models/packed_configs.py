"""Configurations of published models whose experts are packed, facts only."""

import json
from typing import Any

from finemoe.paths import MODEL_CONFIGS

MXFP4 = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}


def gpt_oss_20b() -> dict[str, Any]:
    """As published, in MXFP4."""
    fields: dict[str, Any] = json.loads((MODEL_CONFIGS / "gpt-oss-20b.json").read_text(encoding="utf-8"))
    return {**fields, "quantization_config": MXFP4}


def qwen3_30b_a3b() -> dict[str, Any]:
    """In bf16."""
    return {
        "model_type": "qwen3_moe",
        "vocab_size": 151936,
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "tie_word_embeddings": False,
    }


def qwen3_30b_a3b_fp8() -> dict[str, Any]:
    """As published in FP8."""
    return {**qwen3_30b_a3b(), "quantization_config": FP8}


def pack_quantized(bits: int, group: int, **changes: Any) -> dict[str, Any]:
    """compressed-tensors' part of a configuration, of whole numbers."""
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": group, "dynamic": False}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {**weights, **changes}}},
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*mlp.gate$"],
    }
