"""The miniatures have the paper's layers, experts and top-k, and stay small."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from finemoe.artifact.miniatures.architectures import config_of
from finemoe.errors import FinemoeError
from finemoe.models.shipped import NAMES

SHAPES = {"mixtral-mini": (32, 8, 2, "mixtral"), "qwen-mini": (24, 60, 4, "qwen2_moe"), "phi-mini": (32, 16, 2, "phimoe")}


def num_parameters(name: str) -> int:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config_of(name)).num_parameters()


@pytest.mark.parametrize("name", NAMES)
def test_layers_experts_and_top_k_are_the_papers(name):
    config = config_of(name)
    experts = config.num_experts if hasattr(config, "num_experts") else config.num_local_experts
    assert (config.num_hidden_layers, experts, config.num_experts_per_tok, config.model_type) == SHAPES[name]
    assert config.router_aux_loss_coef > 0
    assert config.output_router_logits


@pytest.mark.parametrize("name", NAMES)
def test_widths_suit_the_grouped_kernels(name):
    config = config_of(name)
    width = getattr(config, "moe_intermediate_size", config.intermediate_size)
    assert config.hidden_size % 8 == width % 8 == 0


@pytest.mark.parametrize("name", NAMES)
def test_each_fits_in_sixteen_mebibytes(name):
    assert num_parameters(name) * 2 <= 16 * 2**20


def test_qwen_has_a_shared_expert_and_plain_top_k():
    config = config_of("qwen-mini")
    assert config.shared_expert_intermediate_size > 0
    assert config.norm_topk_prob is False


def test_unknown_name_lists_the_known():
    with pytest.raises(FinemoeError, match="unknown miniature 'mixtral'; known: mixtral-mini, qwen-mini, phi-mini"):
        config_of("mixtral")
