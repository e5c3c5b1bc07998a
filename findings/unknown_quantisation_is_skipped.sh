#!/usr/bin/env bash
# Transformers 5.23.0 (torch 2.13.0, CPU): from_pretrained loads a checkpoint in ModelOpt's FP8, as published by NVIDIA (quant_method
# "modelopt", weights in float8_e4m3fn, a `weight_scale` for each), as if its bytes were the weights. The scales are left out, and every
# matrix has 448 as its largest value, in the requested type. Nothing raises: Transformers does not know the method, and a warning states that
# it will "skip the quantization"; another lists the scales as unexpected keys. The FP8 bytes fit because they have the shapes of the weights,
# and the model answers with finite logits. Expected is an error, as AutoHfQuantizer.from_config raises for the same configuration
# ("Unknown quantization type").
# finemoe refuses an unknown quantisation by name.
# Needs Python 3.10 to 3.14 and 2 GB in the temporary folder, 6 GB if torch comes with CUDA. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.4.6

cat >"$folder/skipped.py" <<'PY'
import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3MoeConfig
from transformers.quantizers import AutoHfQuantizer

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
folder = Path(sys.argv[1], "checkpoint")
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(
    Qwen3MoeConfig(
        vocab_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, hidden_size=128, head_dim=64,
        moe_intermediate_size=64, num_experts=4, num_experts_per_tok=2, pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )
)  # fmt: skip
model.save_pretrained(folder)
tensors = load_file(folder / "model.safetensors")
for name in [name for name in tensors if name.endswith("proj.weight")]:
    scale = tensors[name].abs().max() / 448
    tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
    tensors[f"{name}_scale"] = scale
    tensors[f"{name.removesuffix('weight')}input_scale"] = torch.tensor(0.01)
save_file(tensors, folder / "model.safetensors", {"format": "pt"})
fp8 = {"dynamic": False, "num_bits": 8, "type": "float"}
told = {
    "quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head", "*.mlp.gate"],
    "producer": {"name": "modelopt"},
    "config_groups": {"group_0": {"input_activations": fp8, "weights": fp8, "targets": ["Linear"]}},
}  # fmt: skip
path = folder / "config.json"
path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": told}))

made, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
largest = {}
for name in ("self_attn.q_proj.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"):
    right, ours = (one.get_parameter(f"model.layers.0.{name}").abs().max().item() for one in (model, made))
    largest[name] = ours
    print(f"{name}: the largest value is {right:.3f}, and was made {ours:.0f}, in {made.dtype}")
lost = {name.rsplit(".", 1)[1] for name in report["unexpected_keys"]}
print(f"not used: {sorted(lost)}; missing: {sorted(report['missing_keys'])}")
finite = bool(made(torch.tensor([[1, 2, 3]])).logits.isfinite().all())
print(f"logits are finite: {finite}")
try:
    AutoHfQuantizer.from_config(told)
    refused = ""
except ValueError as error:
    refused = str(error)
print(f"AutoHfQuantizer.from_config: {refused[:43]!r}")
raw = set(largest.values()) == {448} and lost == {"weight_scale", "input_scale"} and not report["missing_keys"]
sys.exit(0 if raw and finite and refused.startswith("Unknown quantization type") else 1)
PY
"$folder/venv/bin/python" "$folder/skipped.py" "$folder" ||
    { echo "changed; it was: weights with 448 as their largest value, without their scales, and finite logits" && exit 1; }
