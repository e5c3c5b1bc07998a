"""The miniatures' configurations: the paper's L, J, K and routing rules with small widths (all multiples of 8)."""

from collections.abc import Callable
from typing import Any

from finemoe.artifact.miniatures.tokenizer import VOCABULARY
from finemoe.errors import FinemoeError

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
    "output_router_logits": True,
}


def _mixtral() -> Any:
    from transformers import MixtralConfig

    return MixtralConfig(
        **_COMMON,
        hidden_size=96,
        intermediate_size=64,
        num_hidden_layers=32,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        router_aux_loss_coef=0.02,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )


def _qwen() -> Any:
    from transformers import Qwen2MoeConfig

    return Qwen2MoeConfig(
        **_COMMON,
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=96,
        num_hidden_layers=24,
        num_key_value_heads=4,
        num_experts=60,
        num_experts_per_tok=4,
        norm_topk_prob=False,
        router_aux_loss_coef=0.01,
    )


def _phi() -> Any:
    from transformers import PhimoeConfig

    return PhimoeConfig(
        **_COMMON,
        hidden_size=96,
        intermediate_size=24,
        num_hidden_layers=32,
        num_key_value_heads=2,
        num_local_experts=16,
        num_experts_per_tok=2,
        router_aux_loss_coef=0.01,
    )


_CONFIGS: dict[str, Callable[[], Any]] = {"mixtral-mini": _mixtral, "qwen-mini": _qwen, "phi-mini": _phi}


def config_of(name: str) -> Any:
    """The Transformers configuration of a miniature.

    Raises:
        FinemoeError: there is no such miniature.
    """
    if name not in _CONFIGS:
        raise FinemoeError(f"unknown miniature {name!r}; known: {', '.join(_CONFIGS)}")
    return _CONFIGS[name]()


def build(name: str, seed: int) -> Any:
    """A miniature with freshly initialised weights."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config_of(name), experts_implementation="grouped_mm")
