#!/usr/bin/env bash
# Transformers 5.23.0 (torch 2.13.0, CPU): `output_router_logits=True` returns logits for Mixtral, Qwen3-MoE and most others, but for Gemma 4
# the router's probabilities after its softmax: every row sums to 1. A softmax over them, as Transformers' load_balancing_loss_func applies to
# Mixtral's, gives nearly equal probabilities: here the most probable of 6 experts falls from about 0.9 to less than 0.4, while the order
# stays. The documentation of the outputs mentions one tensor per MoE layer and does not state which of the two it holds.
# finemoe's importer of router logits keeps rows that sum to 1 unchanged (finemoe/importers/router_logits.py).
# Needs Python 3.10 to 3.14 and 2 GB in the temporary folder, 6 GB if torch comes with CUDA. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.4.6

cat >"$folder/routers.py" <<'PY'
import sys

import torch
from transformers import AutoModelForCausalLM, Gemma4TextConfig, MixtralConfig, Qwen3MoeConfig

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
CONFIGS = {
    "mixtral": MixtralConfig(**SIZES, intermediate_size=16, num_local_experts=6, num_experts_per_tok=2),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, intermediate_size=16, moe_intermediate_size=16, num_experts=6, num_experts_per_tok=2),
    "gemma4_text": Gemma4TextConfig(
        **SIZES, intermediate_size=16, moe_intermediate_size=16, num_experts=6, top_k_experts=2, enable_moe_block=True,
        global_head_dim=16, num_global_key_value_heads=1, hidden_size_per_layer_input=0,
        layer_types=["sliding_attention", "full_attention"],
    ),
}  # fmt: skip


@torch.no_grad()
def router_logits(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if "router.proj" in name or "gate.weight" in name:
            torch.nn.init.normal_(parameter, std=16)
    return model(torch.arange(1, 33)[None], output_router_logits=True).router_logits[0].double()


sums_to_one = {}
for name, config in CONFIGS.items():
    rows = router_logits(config)
    sums_to_one[name] = bool((rows >= 0).all() and torch.allclose(rows.sum(-1), torch.ones(len(rows)).double(), atol=1e-5))
    greatest = rows.max(-1).values.mean().item() if sums_to_one[name] else rows.softmax(-1).max(-1).values.mean().item()
    again = rows.softmax(-1).max(-1).values.mean().item()
    print(f"{name:12s} rows sum to 1: {sums_to_one[name]!s:5}  most probable expert: {greatest:.2f}, by a softmax of router_logits {again:.2f}")
expected = {"mixtral": False, "qwen3_moe": False, "gemma4_text": True}
if sums_to_one != expected:
    sys.exit(f"It has changed: expected {expected}.")
if not (greatest > 0.8 and again < 0.4):
    sys.exit("It has changed: a softmax of Gemma 4's router_logits no longer makes its experts nearly equal.")
PY
"$folder/venv/bin/python" "$folder/routers.py"
