"""Tiny random models of the three families and an odd one, for tests of the runtime."""

import copy

import torch
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

FAMILIES = ("mixtral", "qwen2_moe", "phimoe")
ODD_FAMILY = "gpt_oss"  # whose experts have biases, and no weight of which fills whole lines of 64 bytes
_COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 96,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}


def build(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A random model in evaluation mode that runs Transformers' eager experts."""
    torch.manual_seed(seed)
    if family == "mixtral":
        model = MixtralForCausalLM(MixtralConfig(**_COMMON, intermediate_size=48, num_local_experts=8, num_experts_per_tok=2))
    elif family == "qwen2_moe":
        experts = {"moe_intermediate_size": 24, "num_experts": 12, "num_experts_per_tok": 4}
        model = Qwen2MoeForCausalLM(Qwen2MoeConfig(**_COMMON, **experts, shared_expert_intermediate_size=40))
    elif family == ODD_FAMILY:
        experts = {"intermediate_size": 21, "num_local_experts": 9, "num_experts_per_tok": 3}
        model = GptOssForCausalLM(GptOssConfig(**_COMMON | {"hidden_size": 36}, **experts, head_dim=16))
        for name, parameter in model.named_parameters():
            if "bias" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    else:
        model = PhimoeForCausalLM(PhimoeConfig(**_COMMON, intermediate_size=48, num_local_experts=8, num_experts_per_tok=2))
    model = model.to(dtype).eval()
    model.set_experts_implementation("eager")
    return model


def padded_batch(rows: int = 3, width: int = 9) -> dict[str, torch.Tensor]:
    """A left-padded batch of random prompts."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(2, 96, (rows, width), generator=generator)
    mask = torch.ones_like(tokens)
    for row in range(rows - 1):
        mask[row, : 2 + row] = 0
    return {"input_ids": tokens * mask, "attention_mask": mask}


def half_right(model: PreTrainedModel) -> PreTrainedModel:
    """A model that says nearly the same, so that some of its drafts are accepted and some are not."""
    draft = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return draft
