#!/usr/bin/env bash
# Transformers 5.23.0 (torch 2.13.0, CPU): without an Apple GPU, a plain from_pretrained cannot load a checkpoint of quant_method "metal",
# although a warning states that Transformers "will default to dequantizing the model to the original dtype". Right after the warning it
# sets `device_map` to "mps", and torch raises. FP8, which gives nearly the same warning, is loaded. With device_map="cpu" the warning is
# right, and the experts of a mixture, which are fused in the model, are unpacked and fused, too.
# finemoe reads FP8, MXFP4, compressed-tensors and GGUF, and refuses other quantisations by name.
# Needs Python 3.10 to 3.14 and 2 GB in the temporary folder, 6 GB if torch comes with CUDA; no Apple GPU. Fails if the behaviour has
# changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.4.6 \
    accelerate==1.15.0

cat >"$folder/metal.py" <<'PY'
import json
import logging
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3MoeConfig
from transformers.integrations.metal_quantization import _affine_dequantize_tensor, _affine_quantize_tensor

transformers.logging.disable_progress_bar()
BITS, GROUP = 4, 64
folder = Path(sys.argv[1], "checkpoint")
warnings = []
handler = logging.Handler()
handler.emit = lambda record: warnings.append(record.getMessage())
transformers.logging.add_handler(handler)

torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(
    Qwen3MoeConfig(
        vocab_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, hidden_size=128, head_dim=64,
        moe_intermediate_size=64, num_experts=4, num_experts_per_tok=2, pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )
)  # fmt: skip
model.save_pretrained(folder)
tensors = load_file(folder / "model.safetensors")
right = {}
for name in [name for name in tensors if name.endswith("proj.weight")]:
    parts = _affine_quantize_tensor(tensors[name], GROUP, BITS)
    right[name] = _affine_dequantize_tensor(*parts, GROUP, BITS)
    stem = name.removesuffix("weight")
    tensors |= dict(zip((name, f"{stem}scales", f"{stem}qbiases"), parts, strict=True))
save_file(tensors, folder / "model.safetensors", {"format": "pt"})
path = folder / "config.json"
told = {"quant_method": "metal", "bits": BITS, "group_size": GROUP}
path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": told}))

try:
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    raised = ""
except RuntimeError as error:
    raised = str(error)
said = [warning for warning in warnings if "default to dequantizing" in warning]
print(f"a warning: {said}; then {raised!r}")
layer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu").model.layers[0]
down = torch.stack([right[f"model.layers.0.mlp.experts.{expert}.down_proj.weight"] for expert in range(4)])
query = right["model.layers.0.self_attn.q_proj.weight"]
same = torch.equal(layer.mlp.experts.down_proj, down), torch.equal(layer.self_attn.q_proj.weight, query)
print(f"with device_map='cpu' the experts and the attention are what the checkpoint says: {same}")
sys.exit(0 if said and "mps" in raised and same == (True, True) else 1)
PY
"$folder/venv/bin/python" "$folder/metal.py" "$folder" ||
    { echo "changed; it was: a warning, then torch has no mps; right with device_map cpu" && exit 1; }
