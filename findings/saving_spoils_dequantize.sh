#!/usr/bin/env bash
# Transformers 5.23.0 (bitsandbytes 0.50.2, torch 2.13.0, CPU): after `save_pretrained`, a model's `dequantize()` raises "Invalid device
# string: 'bfloat16'"; before, it works. Saving changes the saved model: it replaces the type in `model.config.dtype` by the string
# "bfloat16", and dequantize passes it to `Module.to`, which takes a string for a device. With `dtype=torch.bfloat16` passed to dequantize it
# works again, and the weights equal those before saving. (Saving changes `config.dtype` of any model in this way, quantised or not.)
# Needs Python 3.10 to 3.14 and 2 GB in the temporary folder, 6 GB if torch comes with CUDA. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.4.6 \
    accelerate==1.15.0 bitsandbytes==0.50.2

cat >"$folder/saving.py" <<'PY'
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
folder = sys.argv[1]
config = LlamaConfig(
    vocab_size=64, hidden_size=128, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
    pad_token_id=None, bos_token_id=None, eos_token_id=None,
)  # fmt: skip
torch.manual_seed(0)
plain = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
plain.save_pretrained(f"{folder}/plain")
print(f"a plain model, saved: config.dtype is {plain.config.dtype!r}")


def dequantized(is_saved, **options):
    """One weight after dequantize, or what it raises."""
    four_bits = BitsAndBytesConfig(load_in_4bit=True)
    model = AutoModelForCausalLM.from_pretrained(f"{folder}/plain", quantization_config=four_bits, dtype=torch.bfloat16)
    before = model.config.dtype
    if is_saved:
        model.save_pretrained(f"{folder}/saved")
    types = before, model.config.dtype
    try:
        result = model.dequantize(**options).model.layers[0].self_attn.q_proj.weight
    except RuntimeError as error:
        result = str(error)
    print(f"saved {is_saved}, {options}: config.dtype {types}; {result if isinstance(result, str) else result.dtype}")
    return types, result


fresh, (types, raised), given = dequantized(False), dequantized(True), dequantized(True, dtype=torch.bfloat16)
works = torch.equal(fresh[1], given[1]) and fresh[1].dtype == torch.bfloat16 and fresh[0][1] == torch.bfloat16
sys.exit(0 if works and types == (torch.bfloat16, "bfloat16") and raised == "Invalid device string: 'bfloat16'" else 1)
PY
"$folder/venv/bin/python" "$folder/saving.py" "$folder" ||
    { echo "changed; it was: dequantize raises after saving only, unless it is given a type" && exit 1; }
