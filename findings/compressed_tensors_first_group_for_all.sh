#!/usr/bin/env bash
# Transformers 5.23.0 (compressed-tensors 0.20.1, torch 2.13.0, CPU): if the config groups of a checkpoint have different numbers of bits,
# for example int4 in general and int8 for down_proj, from_pretrained unpacks some groups to wrong weights without an error. Which groups
# depends on their order: `CompressedTensorsDequantize` unpacks all dense layers by the first group (that does not name experts) and all
# experts by one group, regardless of the groups' `targets`. Eight bits read as four give the right shape, because the second half is not
# read; with the int8 group first, it raises for sizes instead. In a dense model only `dequantize=True` is wrong, while compressed-tensors'
# own unpacking at the first forward is right; experts are always unpacked while loading, and therefore wrong either way. Only a group
# with "experts" in a regular expression is distinguished from the others. Code that unpacks experts must look up the group of each, as
# compressed-tensors does for layers (`match_named_modules`), or refuse a checkpoint whose groups differ.
# Needs Python 3.10 to 3.14 and 2 GB in the temporary folder, 6 GB if torch comes with CUDA. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.4.6 \
    accelerate==1.15.0 compressed-tensors==0.20.1

cat >"$folder/groups.py" <<'PY'
import json
import re
import sys
import warnings
from pathlib import Path

import torch
import transformers
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig, Qwen3MoeConfig

warnings.filterwarnings("ignore", message="You passed `quantization_config`")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
SIZES = {"vocab_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 128}
SIZES |= {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
LLAMA = LlamaConfig(**SIZES, intermediate_size=256)
QWEN = Qwen3MoeConfig(**SIZES, head_dim=32, moe_intermediate_size=64, num_experts=4, num_experts_per_tok=2)
FORMAT, WIDTH = "pack-quantized", 32
PACKER = BaseCompressor.get_value_from_registry(FORMAT)


def group(bits, *targets):
    weights = QuantizationArgs(num_bits=bits, type="int", strategy="group", group_size=WIDTH, symmetric=True)
    return QuantizationScheme(targets=list(targets), weights=weights, format=FORMAT)


def folder_of(name, model, tensors, told=None):
    model.save_pretrained(name)
    save_file(tensors, f"{name}/model.safetensors", {"format": "pt"})
    if told:
        path = Path(name, "config.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": told}))
    return name


def wrong(config, groups, name, **options):
    """Which parameters from_pretrained makes other than compressed-tensors unpacks them, and how far off; or "raises"."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(f"{name}-plain")
    packed, plain = {}, {}
    for key, weight in load_file(f"{name}-plain/model.safetensors").items():
        packed[key] = plain[key] = weight
        if key.endswith("proj.weight"):
            own = next(one for one in groups if any(re.match(target.removeprefix("re:"), key) for target in one.targets))
            scales = weight.view(len(weight), -1, WIDTH).abs().amax(dim=-1) / (2 ** (own.weights.num_bits - 1) - 1)
            parts = PACKER.compress({"weight": packed.pop(key), "weight_scale": scales}, own)
            packed |= {key.removesuffix("weight") + part: tensor.contiguous() for part, tensor in parts.items()}
            plain[key] = PACKER.decompress(dict(parts), own)["weight"]
    told = QuantizationConfig(
        config_groups={f"group_{number}": one for number, one in enumerate(groups)}, quant_method="compressed-tensors", format=FORMAT,
        quantization_status="compressed", ignore=["lm_head", "re:.*mlp.gate$"],
    )  # fmt: skip
    right = AutoModelForCausalLM.from_pretrained(folder_of(f"{name}-plain", model, plain), dtype=torch.float32)
    path = folder_of(f"{name}-packed", model, packed, json.loads(told.model_dump_json()))
    try:
        made = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options)
    except RuntimeError as error:
        return "raises" if "conversion of the weights" in str(error) else str(error)
    made(torch.tensor([[1, 2, 3]]))  # what is still packed is unpacked by the first forward
    made = dict(made.named_parameters())
    off = {key: (made[key] - tensor).abs().max().item() / tensor.abs().max().item() for key, tensor in right.named_parameters()}
    return {key.removeprefix("model.layers.0."): f"{far:.0%}" for key, far in off.items() if far > 1e-5}


most = ("re:.*self_attn.*", "re:.*gate_proj", "re:.*up_proj")
cases = {
    "Llama, int4, then int8 for down_proj": (LLAMA, [group(4, *most), group(8, "re:.*down_proj")]),
    "Llama, int8 for down_proj, then int4": (LLAMA, [group(8, "re:.*down_proj"), group(4, *most)]),
    "Qwen3-MoE, int4, then int8 for down_proj": (QWEN, [group(4, *most), group(8, "re:.*down_proj")]),
    "Qwen3-MoE, int4 attention, int8 mlp": (QWEN, [group(4, "re:.*self_attn.*"), group(8, "re:.*mlp.*")]),
    "Qwen3-MoE, int4 attention, int8 experts": (QWEN, [group(4, "re:.*self_attn.*"), group(8, "re:.*experts.*")]),
}
seen = []
for number, (name, (config, groups)) in enumerate(cases.items()):
    unpacked = {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    each = [wrong(config, groups, f"{sys.argv[1]}/{number}-{len(options)}", **options) for options in (unpacked, {})]
    print(f"{name}: with dequantize=True {each[0]}; without {each[1]}")
    seen.append(tuple(one if isinstance(one, str) else tuple(one) for one in each))
experts = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
expected = [(("mlp.down_proj.weight",), ()), ("raises", ()), (experts[1:],) * 2, (experts,) * 2, ((), ())]
sys.exit(0 if seen == expected else 1)
PY
TQDM_DISABLE=1 "$folder/venv/bin/python" "$folder/groups.py" "$folder" ||
    { echo "changed; it was: the later group's weights wrong, unless it names experts; the dense model right without dequantize" && exit 1; }
