"""Tiny random models of every family whose routed experts dispatch through Transformers' experts interface.

Families are found in the sources of the installed Transformers; configurations are shrunk by the names of their fields, so that
a family added by a later release needs an entry here only where its fields say something the rules do not know.
"""

import copy
import dataclasses
import functools
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from finemoe.models.layers import is_experts

DECORATOR = "@use_experts_implementation"
LAYERS, EXPERTS, ACTIVATED, VOCABULARY, FIRST_ORDINARY_TOKEN = 4, 8, 2, 96, 40


class CannotBuild(Exception):
    """A family that this module cannot build; the message says why in words."""


@dataclass(frozen=True)
class Family:
    """What is built for `models/<name>`, and whether greedy `model.generate(...)` works on text alone."""

    name: str
    model_class: str
    can_generate: bool


# Known reasons why a family cannot be built.
CANNOT_BUILD: dict[str, str] = {}

# Known reasons why greedy generation from text alone does not work, although the forward pass does.
CANNOT_GENERATE: dict[str, str] = {
    "diffusion_gemma": "denoises a canvas of random tokens instead of writing token by token",
    "openai_privacy_filter": "a token classifier",
}

# Fields that the general rules get wrong: family -> configuration class ("" for all of them) -> fields.
_SWITCHING_HEAD_DIM = {"per_layer_config": {1: {"head_dim": 32}, 3: {"head_dim": 32}}}
_NARROW_CONVOLUTIONS = {"downsample_channels": [16, 16]}
_OVERRIDES: Mapping[str, dict[str, dict[str, Any]]] = MappingProxyType(
    {
        "deepseek_ocr2": {
            "DeepseekOcr2TextConfig": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
            "DeepseekOcr2SamVisionConfig": _NARROW_CONVOLUTIONS,
        },
        "deepseek_v4": {"": {"compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4}}},
        "diffusion_gemma": {"DiffusionGemmaTextConfig": _SWITCHING_HEAD_DIM},
        "dots3_note": {
            "Dots3NoteTextConfig": {
                "swa_num_attention_heads": 4,
                "swa_num_key_value_heads": 4,
                "swa_q_lora_rank": 16,
                "swa_kv_lora_rank": 16,
                "swa_head_dim": 16,
                "swa_qk_nope_head_dim": 8,
                "swa_v_head_dim": 8,
            }
        },
        "ernie4_5_vl_moe": {
            "Ernie4_5_VLMoeTextConfig": {
                "moe_intermediate_size": [24, 16],
                "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0, "mrope_section": [1, 1, 2]},
            }
        },
        "gemma4": {"Gemma4TextConfig": {"enable_moe_block": True, **_SWITCHING_HEAD_DIM}},
        "glm4v_moe": {
            "Glm4vMoeTextConfig": {
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "partial_rotary_factor": 0.5,
                    "mrope_section": [1, 1, 0],
                }
            }
        },
        "granitemoehybrid": {"": {"layer_types": ["linear_attention", "full_attention"] * 2}},
        "hunyuan_v1_moe": {"": {"head_dim": 8}},
        "jamba": {"": {"attn_layer_period": 2, "attn_layer_offset": 1}},
        "lfm2_moe": {"": {"layer_types": ["conv", "full_attention"] * 2}},
        "minimax_m3_vl": {"MiniMaxM3VLTextConfig": {"layer_types": ["full_attention", "minimax_m3_sparse"] * 2}},
        "muse_spark": {"MuseSparkAudioConfig": {"hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1]}},
        "nemotron_h": {"": {"layers_block_type": ["linear_attention", "moe", "full_attention", "moe", "mlp", "moe"]}},
        "qwen3_omni_moe": {"Qwen3OmniMoeThinkerConfig": {"vision_start_token_id": 30}},
        "qwen4_exp": {
            "Qwen4ExpTextConfig": {
                "indexer_n_heads": 2,
                "indexer_kv_heads": 1,
                "indexer_head_dim": 16,
                "indexer_budget": 4,
                "indexer_compress_ratio": 2,
                "ple_layer_ids": [1],
                "heads_per_ngram": 2,
                "ngram_vocab_size_base": 50,
                "make_ngram_vocab_size_divisible_by": 8,
                "split_ngram_parts": 2,
                "eos_token_id": 2,
            }
        },
        "unlimited_ocr": {"UnlimitedOcrSamVisionConfig": _NARROW_CONVOLUTIONS},
        "zaya": {"": {"num_experts_per_tok": 1, "layer_types": ["hybrid", "hybrid_sliding"] * 2, "sliding_window": 8}},
    }
)

# Set also where the default is None.
_FORCED = {
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
    "moe_num_experts": EXPERTS,
    "num_experts_per_tok": ACTIVATED,
    "num_experts_per_token": ACTIVATED,
    "top_k_experts": ACTIVATED,
    "moe_topk": ACTIVATED,
    "moe_k": ACTIVATED,
    "moe_intermediate_size": 24,
    "n_shared_experts": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "mlp_only_layers": [0],
    "first_k_dense_replace": 1,
}

# Set where the default is a number greater than zero.
_SIZES = {
    "hidden_size": 32,
    "d_model": 32,
    "out_hidden_size": 32,
    "text_hidden_size": 32,
    "projector_hidden_size": 32,
    "adapter_out_dim": 32,
    "adapter_in_dim": 32,
    "adapter_input_size": 32,
    "output_dim": 32,
    "output_proj_dims": 32,
    "thinker_hidden_size": 32,
    "moe_hidden_size": 16,
    "hidden_size_per_layer_input": EXPERTS,  # as wide as a router, on purpose: a gate that is none
    "intermediate_size": 48,
    "dense_intermediate_size": 48,
    "encoder_ffn_dim": 48,
    "mlp_dim": 48,
    "shared_expert_intermediate_size": 40,
    "shared_experts_intermediate_size": 40,
    "shared_intermediate_size": 40,
    "moe_shared_expert_intermediate_size": 40,
    "projection_intermediate_size": 40,
    "projection_hidden_dim": 40,
    "router_hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "depth": 2,
    "n_layers": 2,
    "encoder_layers": 2,
    "num_dense_layers": 1,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": LAYERS - 1,
    "moe_num_shared_experts": 1,
    "num_shared_experts": 1,
    "num_attention_heads": 4,
    "num_heads": 4,
    "encoder_attention_heads": 4,
    "swa_num_attention_heads": 4,
    "num_key_value_heads": 2,
    "swa_num_key_value_heads": 2,
    "head_dim": 16,
    "swa_head_dim": 16,
    "n_group": 2,
    "num_expert_group": 2,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "o_lora_rank": 16,
    "o_groups": 2,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_topk": 4,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_kpool": 2,
    "index_block_size": 4,
    "index_topk_blocks": 2,
    "gated_norm_rank": 4,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "mamba_d_state": 8,
    "mamba_d_head": 8,
    "mamba_n_heads": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "mamba_dt_rank": 4,
    "mamba_chunk_size": 8,
    "ssm_state_size": 8,
    "n_groups": 2,
    "chunk_size": 8,
    "block_size": 4,
    "vocab_size": VOCABULARY,
    "unpadded_vocab_size": VOCABULARY - 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "max_position_embeddings": 128,
    "model_max_length": 128,
    "sliding_window": 8,
    "sliding_window_size": 8,
    "d_rel": 4,
    "rel_extent": 16,
    "hc_mult": 2,
    "hc_sinkhorn_iters": 3,
    "hc_lowrank": 8,
    "canvas_length": 8,
    "image_size": 56,
    "num_position_embeddings": 16,
    "position_embedding_size": 16,
    "posemb_grid_size": 4,
    "pos_emb_height": 4,
    "pos_emb_width": 4,
    "output_channels": 16,
    "downsample_hidden_size": 8,
    "max_source_positions": 32,
    "decoder_dim": 16,
    "codebook_size": VOCABULARY,
    "num_code_groups": 4,
    "num_quantizers": 2,
    "mel_vocab_size": 16,
    "n_mel_bins": 8,
    "num_mel_bins": 8,
}
_TOKEN = re.compile(r"(token_id|token_index|codec_\w+_id)$")


@functools.cache
def _family_files() -> dict[str, Path]:
    root = Path(transformers.__file__).parent / "models"
    files = sorted(root.glob("*/modeling_*.py"))
    return {file.parent.name: file for file in files if DECORATOR in file.read_text(encoding="utf-8")}


def family_names() -> list[str]:
    """Every family of the installed Transformers with an experts class that dispatches, sorted."""
    return sorted(_family_files())


def family(name: str) -> Family:
    """The class that `build` makes for a family."""
    return Family(name, _classes(name)[0].__name__, name not in CANNOT_GENERATE)


def experts_modules(model: nn.Module) -> dict[str, nn.Module]:
    """All experts collections of the model by their paths."""
    return {name: module for name, module in model.named_modules() if is_experts(module)}


def build(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A random model in evaluation mode that runs Transformers' eager experts.

    Raises:
        CannotBuild: the family cannot be built here, for the reason given.
    """
    if name in CANNOT_BUILD:
        raise CannotBuild(CANNOT_BUILD[name])
    try:
        model_class, config_class = _classes(name)
        config = _shrunk(config_class, _OVERRIDES.get(name, {}))
        with torch.random.fork_rng(devices=[]), _nan_in_uninitialised_memory():
            torch.manual_seed(seed)
            model = model_class._from_config(config, dtype=dtype)
    except CannotBuild:
        raise
    except Exception as error:
        raise CannotBuild(f"{name} does not build from its shrunk configuration: {type(error).__name__}: {error}") from error
    _randomise(model, dtype, seed)
    model.eval()
    model.set_experts_implementation("eager")
    _check(name, model)
    return model


def batch(model: PreTrainedModel, rows: int = 2, width: int = 7) -> dict[str, torch.Tensor]:
    """Inputs of the forward pass: ordinary tokens, the first rows padded on the left."""
    generator = torch.Generator().manual_seed(rows * 1000 + width)
    input_ids = torch.randint(FIRST_ORDINARY_TOKEN, VOCABULARY - 8, (rows, width), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    for row in range(rows - 1):
        attention_mask[row, : min(2 + row, width - 1)] = 0
    input_ids[attention_mask == 0] = 0
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    canvas = getattr(model.config, "canvas_length", None)
    if isinstance(canvas, int):  # what a diffusion model denoises; drawn at random in its forward pass where it is not given
        inputs["decoder_input_ids"] = torch.randint(FIRST_ORDINARY_TOKEN, VOCABULARY - 8, (rows, canvas), generator=generator)
    return inputs


def logits_of(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The output that two runs are compared by: logits, or the last hidden state where there are none."""
    with torch.no_grad():
        output = model(**batch)
    logits = getattr(output, "logits", None)
    return output.last_hidden_state if logits is None else logits


def _classes(name: str) -> tuple[type[PreTrainedModel], type[PreTrainedConfig]]:
    """The model class to build and its configuration class."""
    if name not in _family_files():
        raise CannotBuild(f"transformers {transformers.__version__} has no family {name} with dispatching experts")
    module = importlib.import_module(f"transformers.models.{name}.{_family_files()[name].stem}")
    for mapping in _auto_mappings():
        for config_class in _config_classes(name).values():
            model_class = mapping.get(config_class.model_type, "")
            if isinstance(model_class, str) and hasattr(module, model_class):
                return getattr(module, model_class), config_class
    raise CannotBuild(f"no auto class names a model of {name}")


def _auto_mappings() -> Iterator[Mapping[str, Any]]:
    """Model type -> class name, the classes that read and write text first."""
    kinds = ("FOR_CAUSAL_LM_", "FOR_IMAGE_TEXT_TO_TEXT_", "FOR_MULTIMODAL_LM_", "FOR_TOKEN_CLASSIFICATION_", "")
    for kind in kinds:
        mapping = getattr(modeling_auto, f"MODEL_{kind}MAPPING_NAMES", None)
        if mapping is not None:
            yield mapping


def _config_classes(name: str) -> dict[str, type[PreTrainedConfig]]:
    """The configuration classes of a family, those of text models first."""
    found: dict[str, type[PreTrainedConfig]] = {}
    for file in sorted(_family_files()[name].parent.glob("configuration_*.py")):
        module = importlib.import_module(f"transformers.models.{name}.{file.stem}")
        for key, value in vars(module).items():
            if inspect.isclass(value) and issubclass(value, PreTrainedConfig) and value.__module__ == module.__name__:
                found[key] = value
    return dict(sorted(found.items(), key=lambda item: "text" not in item[1].model_type))


def _shrunk(config_class: type[PreTrainedConfig], overrides: Mapping[str, dict[str, Any]]) -> PreTrainedConfig:
    """The configuration of a tiny model of the class, sub-configurations included."""
    default = config_class()
    arguments: dict[str, Any] = {}
    for key in config_class.sub_configs:
        part = getattr(default, key, None)
        if isinstance(part, PreTrainedConfig):
            arguments[key] = _shrunk(type(part), overrides)
    tokens = iter(range(2, FIRST_ORDINARY_TOKEN))
    values = _field_values(default)
    for key, value in values.items():
        if key not in arguments:
            special = key not in _FORCED and _TOKEN.search(key) and isinstance(value, int)
            small = next(tokens) if special else _small(key, value, values)
            if small is not value or key in _FORCED:
                arguments[key] = small
    return config_class(**arguments | overrides.get("", {}) | overrides.get(config_class.__name__, {}))


def _field_values(config: PreTrainedConfig) -> dict[str, Any]:
    """The declared fields of a configuration; not through `getattr`, which refuses those that vary by layer."""
    values = config.to_dict()
    names = [field.name for field in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else list(values)
    stored = {name: config.attribute_map.get(name, name) for name in names}
    return {name: values.get(key) for name, key in stored.items() if name == key or key not in names}


def _small(key: str, value: Any, values: Mapping[str, Any]) -> Any:
    """The value of a field in the tiny configuration; `value` itself where nothing says otherwise."""
    if key in _FORCED:
        return copy.copy(_FORCED[key])
    if isinstance(value, list | tuple) and value:
        return _small_list(key, list(value), values)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        return value
    if key == "num_key_value_heads" and value == values.get("num_attention_heads"):
        return _SIZES["num_attention_heads"]
    if key in ("num_key_value_heads", "topk_group", "n_group") and value == 1:
        return value
    return _SIZES.get(key, value)


def _small_list(key: str, value: list[Any], values: Mapping[str, Any]) -> Any:
    """A list with one entry per layer cut to the tiny depth, every kind of layer kept, dense layers first."""
    if len(value) != values.get("num_hidden_layers"):
        return value
    if not all(isinstance(entry, str) for entry in value):
        heads = values.get("num_attention_heads")
        return [_SIZES["num_attention_heads"]] * LAYERS if set(value) == {heads} else value[:LAYERS]
    kinds = list(dict.fromkeys(value))
    if key == "mlp_layer_types":
        kinds = ["dense", *kinds] if kinds == ["sparse"] else kinds
        return (kinds + [kinds[-1]] * LAYERS)[:LAYERS]
    return (kinds * LAYERS)[:LAYERS]


@contextmanager
def _nan_in_uninitialised_memory() -> Iterator[None]:
    """Makes `torch.empty` give NaN, so that parameters nobody initialised are found."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@torch.no_grad()
def _randomise(model: PreTrainedModel, dtype: torch.dtype, seed: int) -> None:
    """Seeded weights large enough that tokens are routed differently; fp32 kept where `from_pretrained` keeps it."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim >= 2 or not bool(parameter.isfinite().all()):
            parameter.copy_((0.5 if ".router_mlp." in name else 0.1) * noise)  # a router of several layers needs more
        elif name.endswith("bias"):
            parameter.copy_(0.05 * noise)
        else:
            parameter.add_((0.02 * noise).to(parameter.dtype))
    for name, buffer in model.named_buffers():
        if "bias" in name.rpartition(".")[2] and buffer.is_floating_point():
            buffer.copy_(0.05 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("balancing_biases"):  # Zaya's last class skips the experts; trained models rarely choose it
                buffer[-1] = 0.4
        elif name.endswith("tid2eid"):
            order = torch.rand(buffer.shape[0], EXPERTS, generator=generator).argsort(dim=-1)
            buffer.copy_(order[:, : buffer.shape[1]])
    kept = [*(model._keep_in_fp32_modules_strict or ())]
    if dtype != torch.float32 and kept:
        pattern = re.compile("|".join(r"(^|\.)" + key.replace(".", r"\.").replace("*", ".*") + r"($|\.)" for key in kept))
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if pattern.search(name) and tensor.is_floating_point():
                tensor.data = tensor.data.float()


def _check(name: str, model: PreTrainedModel) -> None:
    found = experts_modules(model)
    if not found:
        raise CannotBuild(f"{type(model).__name__} of {name} came out without routed experts")
    for path, experts in found.items():
        chosen = getattr(experts.config, "_experts_implementation", None)
        if chosen != "eager":
            raise CannotBuild(f"{path} of {name} runs {chosen} although eager experts were asked for")
