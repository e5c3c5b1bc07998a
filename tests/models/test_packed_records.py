"""Computed bytes against the records of small packed checkpoints that are loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import finemoe
from finemoe.cli.model_facts import model_facts
from finemoe.errors import FinemoeError
from finemoe.models.geometry import Geometry, config_of
from finemoe.packing.codec import Packer
from finemoe.packing.fp8 import Fp8
from finemoe.packing.gguf_mixes import type_in_mix
from finemoe.packing.mxfp4 import Mxfp4
from tests.models.packed_configs import FP8, MXFP4, gpt_oss_20b, qwen3_30b_a3b
from tests.packed import checkpoints, gguf_files

SMALL = {"num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
QWEN = {**qwen3_30b_a3b(), **SMALL, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
OSS = {**gpt_oss_20b(), **SMALL, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 96}


def fp8(folder: Path, block: tuple[int, int], skipped: list[str]) -> None:
    """Every matrix of an expert in FP8, but in layers that are skipped."""
    told = {**FP8, "weight_block_size": list(block), "modules_to_not_convert": skipped}
    tensors = plain(folder, QWEN, told)
    for name in [name for name in tensors if ".experts." in name and not name.startswith(tuple(skipped))]:
        rows, columns = tensors[name].shape
        tensors[name], tensors[f"{name}_scale_inv"] = Fp8.of((rows, columns), block).pack(tensors[name])
    save(folder, tensors)


def mxfp4(folder: Path) -> None:
    """gpt-oss as it is published: blocks and scales of the transpose, all experts in one tensor."""
    tensors = plain(folder, OSS, MXFP4)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        codec: Packer = Mxfp4((tensors[name].shape[2], tensors[name].shape[1]))
        packed = [codec.pack(one.t().float()) for one in tensors.pop(name)]
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = (torch.stack(parts) for parts in zip(*packed, strict=True))
    save(folder, tensors)


def plain(folder: Path, fields: dict[str, Any], told: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A checkpoint in bf16, whose configuration says already how it will be packed; its tensors."""
    config = config_of({name: value for name, value in fields.items() if name != "quantization_config"})
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**written, "quantization_config": told}), encoding="utf-8")
    tensors: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return tensors


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("make", "options", "expected"),
    [
        (fp8, ((16, 16), []), 3 * 40 * 64 + 3 * 3 * 4 * 4),
        (fp8, ((128, 128), []), 3 * 40 * 64 + 3 * 16),
        (fp8, ((16, 16), ["model.layers.1.mlp"]), 3 * 40 * 64 * 2),
        (mxfp4, (), 192 * 2 * 17 + 64 * 3 * 17 + 2 * (192 + 64)),
    ],
)
def test_records_have_the_computed_bytes(make, options, expected, tmp_path):
    make(tmp_path, *options)
    geometry = Geometry.from_config(tmp_path)
    _, engine = finemoe.load(tmp_path, 1.0, "on-demand")
    with engine:
        sizes = [layout.nbytes for layout in engine.records.layouts]
    assert geometry.expert_bytes == max(sizes) == expected
    assert geometry.all_experts_bytes == geometry.num_experts * sum(sizes)


@pytest.mark.parametrize(("make", "options"), [(fp8, ((16, 16), [])), (mxfp4, ())])
def test_the_smallest_expert_memory_is_enough_and_no_more(make, options, tmp_path):
    make(tmp_path, *options)
    smallest = model_facts(str(tmp_path), None)["smallest_expert_memory_bytes"]
    _, engine = finemoe.load(tmp_path, smallest, "on-demand")
    most = 256 * len(engine.records.layouts[0].packing.weights.fields)  # which only the file can tell
    with engine:
        assert smallest - most <= engine.expert_memory_bytes <= smallest
    with pytest.raises(FinemoeError, match=r"give at least [0-9]+, or a share"):
        finemoe.load(tmp_path, smallest - most - 1, "on-demand")


@pytest.mark.parametrize(
    "case", ["qwen3_moe_int4", "qwen3_moe_int8", "deepseek_v3_fp8", "glm4_moe_fp8", "qwen3_moe_fp8_one_scale", "gpt_oss_mxfp4"]
)
def test_other_checkpoints_have_the_computed_bytes(case, tmp_path):
    checkpoints.make(case, tmp_path / case)
    geometry = Geometry.from_config(tmp_path / case)
    _, engine = finemoe.load(tmp_path / case, 1.0, "on-demand")
    with engine:
        sizes = [layout.nbytes for layout in engine.records.layouts]
    assert geometry.expert_format != "bf16"
    assert (geometry.expert_bytes, geometry.all_experts_bytes) == (max(sizes), geometry.num_experts * sum(sizes))


@pytest.mark.parametrize("mix", ["Q4_K_M", "Q5_K_M", "Q8_0"])
def test_a_gguf_file_of_a_mix_has_the_computed_bytes(mix, tmp_path):
    shape = gguf_files.Shape(layers=9)

    def kind(name: str) -> gguf_files.Type:
        if "_exps" not in name:
            return gguf_files.Type.F32
        return gguf_files.Type[type_in_mix(mix, "down" in name, int(name.split(".")[1]), shape.layers)]

    file = gguf_files.qwen3moe(kind, shape).write(tmp_path)
    fields = {**QWEN, "hidden_size": shape.hidden, "moe_intermediate_size": shape.intermediate, "num_hidden_layers": shape.layers}
    geometry = Geometry.from_config({**fields, "num_experts": shape.num_experts}, mix)
    _, engine = finemoe.load(file, 1.0, "on-demand")
    with engine:
        sizes = [layout.nbytes for layout in engine.records.layouts]
    assert (geometry.expert_bytes, geometry.all_experts_bytes) == (max(sizes), shape.num_experts * sum(sizes))
    assert len(set(sizes)) == (1 if mix == "Q8_0" else 2)
