#!/usr/bin/env bash
# Transformers 5.23.0 (torch 2.13.0, CPU): from_pretrained builds wrong weights, without an error, from a checkpoint in fine-grained FP8
# whose weights have rows (or columns) that are not a multiple of `weight_block_size`. Without a GPU it unpacks to bf16 or float32 by
# default. The scales are a grid with one scale per block of 128 x 128; the last block is smaller: 192 rows have two, for rows 0-127 and
# 128-191. `Fp8Dequantize` ignores the block size and divides the rows evenly, here into 96 each, so rows 96-127 get the scale of the
# second block. If the rows cannot be divided evenly, it raises. That is the case for 576 rows and a grid of 5, which is
# `kv_a_proj_with_mqa` of every DeepSeek-V3 in its published layout (kv_lora_rank 512 and qk_rope_head_dim 64, the defaults of
# DeepseekV3Config): unpacking that model fails, although this kind of FP8 originates from it.
# finemoe unpacks experts by the block size that the checkpoint states (finemoe/packing/fp8.py).
# Needs Python 3.10 to 3.14 and 2 GB in the temporary folder, 6 GB if torch comes with CUDA. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.4.6 \
    accelerate==1.15.0

cat >"$folder/blocks.py" <<'PY'
import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DeepseekV3Config, Qwen3MoeConfig

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
BLOCK = 128
SIZES = {"vocab_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "hidden_size": 256}
SIZES |= {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


def qwen(width):
    return Qwen3MoeConfig(**SIZES, head_dim=128, moe_intermediate_size=width, num_experts=4, num_experts_per_tok=2)


def packed(weight):
    """A weight in FP8, the scales of its blocks, and what these say."""
    rows, columns = (-(-size // BLOCK) for size in weight.shape)
    values, said = torch.empty_like(weight, dtype=torch.float8_e4m3fn), torch.empty_like(weight)
    scales = torch.empty(rows, columns)
    for row in range(rows):
        for column in range(columns):
            block = slice(row * BLOCK, (row + 1) * BLOCK), slice(column * BLOCK, (column + 1) * BLOCK)
            scales[row, column] = weight[block].abs().max() / 448
            values[block] = (weight[block] / scales[row, column]).to(values.dtype)
            said[block] = values[block].float() * scales[row, column]
    return values, scales, said


def folder_of(name, model, tensors, told=None):
    model.save_pretrained(name)
    save_file(tensors, f"{name}/model.safetensors", {"format": "pt"})
    if told:
        path = Path(name, "config.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": told}))
    return name


def wrong(config, name):
    """Which parameters from_pretrained makes other than the checkpoint says, and the share of their values that is off."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(f"{name}-plain")
    fp8, plain = {}, {}
    for key, weight in load_file(f"{name}-plain/model.safetensors").items():
        fp8[key] = plain[key] = weight
        if key.endswith(("proj.weight", "_mqa.weight")):
            weight[BLOCK:] *= 10
            fp8[key], fp8[f"{key}_scale_inv"], plain[key] = packed(weight)
    told = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    made = AutoModelForCausalLM.from_pretrained(folder_of(f"{name}-fp8", model, fp8, told), dtype=torch.float32)
    right = AutoModelForCausalLM.from_pretrained(folder_of(f"{name}-plain", model, plain), dtype=torch.float32)
    pairs = zip(made.named_parameters(), right.parameters(), strict=True)
    off = {key: (ours - theirs).abs() > 1e-6 for (key, ours), theirs in pairs}
    return {key.removeprefix("model.layers.0."): round(there.float().mean().item(), 3) for key, there in off.items() if there.any()}


folder = sys.argv[1]
seen = {}
for width in (128, 192, 256):
    seen[width] = wrong(qwen(width), f"{folder}/{width}")
    print(f"experts of width {width}: share of values off: {seen[width]}")
deepseek = DeepseekV3Config(
    **SIZES, intermediate_size=256, moe_intermediate_size=256, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
    first_k_dense_replace=0, q_lora_rank=128,
)  # fmt: skip
try:
    wrong(deepseek, f"{folder}/deepseek")
    raised = ""
except RuntimeError as error:
    raised = str(error)
print(f"DeepSeek-V3, kv_a_proj_with_mqa of {deepseek.kv_lora_rank + deepseek.qk_rope_head_dim} rows: {raised!r}")
gone = set(seen[192]) == {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
sys.exit(0 if gone and not seen[128] and not seen[256] and "conversion of the weights" in raised else 1)
PY
"$folder/venv/bin/python" "$folder/blocks.py" "$folder" ||
    { echo "changed; it was: a sixth of the values off at a width of 192, none at 128 and 256, and DeepSeek-V3 raises" && exit 1; }
