"""Tiny quantised checkpoints in folders, packed by `numerics`, and the models that they are worth.

Their reference is `dequantised`, Transformers' own; or `naive`, a plain model with the weights that `numerics` says, where
Transformers has another opinion of the blocks (see `Made.is_ragged`).
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DeepseekV3Config,
    Glm4MoeConfig,
    GptOssConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)
from transformers.quantizers.auto import AutoQuantizationConfig

from tests.packed.numerics import float32, quantize_fp8, quantize_int, quantize_mxfp4, rounded

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
VOCABULARY = 64
EXPERTS = 6
_COMMON = {
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "dtype": "bfloat16",
}
_ROUTED = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def qwen3_moe(hidden: int, inter: int) -> Any:
    return Qwen3MoeConfig(
        **_COMMON,
        hidden_size=hidden,
        moe_intermediate_size=inter,
        num_hidden_layers=3,
        num_experts=EXPERTS,
        num_key_value_heads=2,
        head_dim=16,
    )


def deepseek_v3(hidden: int, inter: int) -> Any:
    """The first layer is dense; all others have a shared expert."""
    return DeepseekV3Config(
        **_COMMON,
        hidden_size=hidden,
        intermediate_size=2 * inter,
        moe_intermediate_size=inter,
        num_hidden_layers=3,
        first_k_dense_replace=1,
        n_routed_experts=EXPERTS,
        n_shared_experts=1,
        n_group=2,
        topk_group=1,
        num_key_value_heads=4,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=16,
    )


def glm4_moe(hidden: int, inter: int) -> Any:
    """The first layer is dense."""
    return Glm4MoeConfig(
        **_COMMON,
        hidden_size=hidden,
        intermediate_size=2 * inter,
        moe_intermediate_size=inter,
        num_hidden_layers=3,
        first_k_dense_replace=1,
        n_routed_experts=EXPERTS,
        n_shared_experts=1,
        num_key_value_heads=2,
        head_dim=16,
    )


def gpt_oss(hidden: int, inter: int) -> Any:
    return GptOssConfig(
        **_COMMON,
        hidden_size=hidden,
        intermediate_size=inter,
        num_hidden_layers=3,
        num_local_experts=EXPERTS,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )


CONFIGS = {"qwen3_moe": qwen3_moe, "deepseek_v3": deepseek_v3, "glm4_moe": glm4_moe, "gpt_oss": gpt_oss}


@dataclass
class Made:
    """A checkpoint.

    Attributes:
        folder: of it. worth: of every packed matrix, by its name as a plain checkpoint has it, float32.
        is_ragged: whether some block is cut off by a matrix's end.
    """

    folder: Path
    worth: dict[str, np.ndarray] = field(default_factory=dict)
    is_ragged: bool = False

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors, mapped."""
        found: dict[str, torch.Tensor] = {}
        for file in sorted(self.folder.glob("*.safetensors")):
            found |= load_file(file)
        return found


def fp8(
    folder: Path,
    family: str = "qwen3_moe",
    block: tuple[int, int] | None = (16, 16),
    scales: str = "float32",
    hidden: int = 64,
    inter: int = 48,
    plain_layer: int | None = None,
    num_files: int = 1,
    seed: int = 0,
) -> Made:
    """Every projection in FP8.

    Args:
        block: None for one scale a matrix; scales: see `quantize_fp8`.
        hidden, inter: widths, of an expert's inside; plain_layer: whose experts are left out of the quantisation.
    """
    made, packed = Made(folder), {}
    for name, tensor in _plain(folder, CONFIGS[family](hidden, inter), seed).items():
        is_left_out = plain_layer is not None and f"layers.{plain_layer}.mlp.experts" in name
        if is_left_out or not name.endswith(("_proj.weight", "_proj_with_mqa.weight")):
            packed[name] = tensor
        else:
            step = block or tuple(tensor.shape)
            packed[name], scale, made.worth[name] = quantize_fp8(float32(tensor), step, scales)
            packed[f"{name}_scale_inv"] = scale if block else scale.reshape(())
            made.is_ragged |= any(size > one and size % one for size, one in zip(tensor.shape, step, strict=True))
    told: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
    told["weight_block_size"] = list(block) if block else None
    told["modules_to_not_convert"] = ["lm_head"]
    if plain_layer is not None:
        told["modules_to_not_convert"].append(f"model.layers.{plain_layer}.mlp.experts")
    if scales in ("uint8", "float8_e8m0fnu"):
        told["scale_fmt"] = "ue8m0"
    return _written(made, packed, told, num_files)


def mxfp4(folder: Path, hidden: int = 64, inter: int = 96, num_files: int = 1, seed: int = 0) -> Made:
    """gpt-oss as published: fused blocks and scales, input last, and biases."""
    made, packed = Made(folder), {}
    for name, tensor in _plain(folder, gpt_oss(hidden, inter), seed).items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            packed[name] = tensor
            continue
        parts = [quantize_mxfp4(float32(one).T) for one in tensor]
        packed[f"{name}_blocks"] = torch.stack([blocks for blocks, _, _ in parts])
        packed[f"{name}_scales"] = torch.stack([scales for _, scales, _ in parts])
        made.worth[name] = np.stack([worth.T for _, _, worth in parts])
    skipped = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    return _written(made, packed, {"quant_method": "mxfp4", "modules_to_not_convert": skipped}, num_files)


def pack_quantized(folder: Path, bits: int, group: int, hidden: int = 64, inter: int = 96, seed: int = 0) -> Made:
    """Routed experts in compressed-tensors' whole numbers, symmetric; all else as it was."""
    made, packed = Made(folder), {}
    for name, tensor in _plain(folder, qwen3_moe(hidden, inter), seed).items():
        if not _ROUTED.fullmatch(name):
            packed[name] = tensor
            continue
        stem = name.removesuffix("weight")
        matrix = float32(tensor)
        packed[f"{stem}weight_packed"], packed[f"{stem}weight_scale"], worth = quantize_int(matrix, bits, group)
        packed[f"{stem}weight_shape"] = torch.tensor(matrix.shape)
        made.worth[name] = float32(rounded(worth, torch.bfloat16))  # compressed-tensors computes in the scales' type
    return _written(made, packed, compressed_tensors(bits, group))


def compressed_tensors(bits: int, group: int, **changes: Any) -> dict[str, Any]:
    """compressed-tensors' part of a configuration."""
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": group, "dynamic": False}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*mlp.gate$"],
        **changes,
    }


CASES: dict[str, Callable[[Path], Made]] = {
    "qwen3_moe_fp8": fp8,
    "qwen3_moe_fp8_128_bf16_scales": lambda folder: fp8(folder, block=(128, 128), scales="bfloat16", hidden=128, inter=256),
    "qwen3_moe_fp8_8x32_exponents_as_bytes": lambda folder: fp8(folder, block=(8, 32), scales="uint8", inter=64),
    "qwen3_moe_fp8_e8m0": lambda folder: fp8(folder, scales="float8_e8m0fnu"),
    "qwen3_moe_fp8_one_scale": lambda folder: fp8(folder, block=None),
    "qwen3_moe_fp8_one_plain_layer": lambda folder: fp8(folder, plain_layer=1),
    "qwen3_moe_fp8_two_files": lambda folder: fp8(folder, num_files=2),
    "deepseek_v3_fp8": lambda folder: fp8(folder, "deepseek_v3"),
    "glm4_moe_fp8": lambda folder: fp8(folder, "glm4_moe"),
    "gpt_oss_mxfp4": mxfp4,
    "gpt_oss_mxfp4_two_files": lambda folder: mxfp4(folder, 96, 32, num_files=2),
    "qwen3_moe_int4": lambda folder: pack_quantized(folder, 4, 32),
    "qwen3_moe_int8": lambda folder: pack_quantized(folder, 8, 32),
    "qwen3_moe_fp8_ragged": lambda folder: fp8(folder, inter=40),
    "qwen3_moe_fp8_ragged_128": lambda folder: fp8(folder, block=(128, 128), hidden=128, inter=192),
    "deepseek_v3_fp8_ragged": lambda folder: fp8(folder, "deepseek_v3", scales="bfloat16", hidden=72, inter=44),
    "glm4_moe_fp8_ragged": lambda folder: fp8(folder, "glm4_moe", block=(32, 16), scales="uint8", hidden=56, inter=40),
}


def make(case: str, folder: Path) -> Made:
    """One of `CASES` in a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return CASES[case](folder)


def dequantised(folder: Path, dtype: Any = "auto") -> PreTrainedModel:
    """What Transformers makes of a checkpoint, with eager experts."""
    told = json.loads((folder / "config.json").read_text())["quantization_config"]
    unpacking = AutoQuantizationConfig.from_dict({**told, "dequantize": True})
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, experts_implementation="eager", quantization_config=unpacking
    )
    return model.eval()


def naive(made: Made, dtype: Any = "auto") -> PreTrainedModel:
    """A plain model with the weights that a checkpoint is worth. What is not packed stays mapped from its file, since
    from_pretrained leaves it there, too, and where a weight begins may change how it is multiplied."""
    config = AutoConfig.from_pretrained(made.folder)
    del config.quantization_config
    dtype = torch.bfloat16 if dtype == "auto" else dtype
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, experts_implementation="eager")
    state: dict[str, torch.Tensor] = {}
    experts: dict[str, dict[int, dict[str, torch.Tensor]]] = {}
    for name, tensor in (made.tensors() | {name: rounded(worth, dtype) for name, worth in made.worth.items()}).items():
        if found := _ROUTED.fullmatch(name):
            experts.setdefault(found[1], {}).setdefault(int(found[2]), {})[found[3]] = tensor.to(dtype)
        else:
            state[name] = tensor if name.endswith("e_score_correction_bias") else tensor.to(dtype)
    for name, parts in experts.items():
        rows = [parts[number] for number in range(EXPERTS)]
        state[f"{name}.gate_up_proj"] = torch.stack([torch.cat((one["gate"], one["up"])) for one in rows])
        state[f"{name}.down_proj"] = torch.stack([one["down"] for one in rows])
    wanted = model.state_dict()
    model.load_state_dict({name: state[name] for name in wanted}, assign=True)
    return model.eval()


def prompts() -> dict[str, torch.Tensor]:
    """A left-padded batch."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(2, VOCABULARY, (3, 9), generator=generator)
    mask = torch.ones_like(tokens)
    mask[0, :4] = mask[1, :2] = 0
    return {"input_ids": tokens * mask, "attention_mask": mask}


def edit(folder: Path, function: Any) -> None:
    """Change the tensors of a checkpoint in one file."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / ONE).items()}
    function(tensors)
    (folder / ONE).unlink()
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / ONE, metadata={"format": "pt"})


def edit_config(folder: Path, function: Any) -> None:
    """Change a checkpoint's configuration."""
    config = json.loads((folder / "config.json").read_text())
    function(config)
    (folder / "config.json").write_text(json.dumps(config))


def _plain(folder: Path, config: Any, seed: int) -> dict[str, torch.Tensor]:
    """Random weights as a plain checkpoint names them; leaves the configuration in the folder."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if "bias" in name or "sinks" in name:
            torch.nn.init.normal_(tensor, std=0.1)
    model.save_pretrained(folder)
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / ONE).items()}
    (folder / ONE).unlink()
    corrections = [name for name in tensors if name.endswith("e_score_correction_bias")]
    return tensors | {name: torch.randn(EXPERTS) * 0.1 for name in corrections}  # float32, as published


def _written(made: Made, tensors: dict[str, torch.Tensor], told: dict[str, Any], num_files: int = 1) -> Made:
    edit_config(made.folder, lambda config: config.update(quantization_config=told))
    names = sorted(tensors)
    files = [ONE] if num_files == 1 else [f"model-{number + 1:05}-of-{num_files:05}.safetensors" for number in range(num_files)]
    placed = {name: files[number % num_files] for number, name in enumerate(names)}
    for file in files:
        part = {name: tensors[name].contiguous() for name in names if placed[name] == file}
        save_file(part, made.folder / file, metadata={"format": "pt"})
    if num_files > 1:
        size = sum(tensor.nbytes for tensor in tensors.values())
        (made.folder / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": placed}))
    return made
