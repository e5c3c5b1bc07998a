#!/usr/bin/env bash
# Transformers 5.23.0 (torch 2.13.0, CPU): Jamba's `generate(prefill_chunk_size=...)` returns other logits than the whole prefill, without a
# warning. Pieces should only save memory, as they do in granitemoehybrid (differences of about 1e-6). A Mamba layer caches two states. That of
# the convolution continues from piece to piece; that of the scan does not: a forward over several tokens starts the scan from zeros
# (`mamba_selective_scan`), then overwrites the cached state. Even if the cached state is filled with 1000, the logits stay the same to the
# bit. A piece of one token takes another path and is right. finemoe.record accepts `prefill_chunk_size` as `generate` does and records the
# experts of the tokens as they were fed: for Jamba, these differ from those of one forward over the prompt (docs/metrics.md).
# Needs Python 3.10 to 3.14 and 2 GB in the temporary folder, 6 GB if torch comes with CUDA. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.4.6

cat >"$folder/pieces.py" <<'PY'
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache, GraniteMoeHybridConfig, JambaConfig

transformers.logging.set_verbosity_error()  # which implementation of the scan runs
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "num_experts_per_tok": 2, "mamba_d_state": 8, "initializer_range": 0.2}
SIZES |= {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
CONFIGS = (
    JambaConfig(**SIZES, num_experts=4, attn_layer_period=2, attn_layer_offset=1, mamba_dt_rank=4),
    GraniteMoeHybridConfig(
        **SIZES, num_local_experts=4, shared_intermediate_size=32, layer_types=["linear_attention", "full_attention"] * 2,
        mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=1,
    ),
)


def distance(left, right):
    return (left - right).abs().max().item()


@torch.no_grad()
def in_pieces_of_four(model, tokens, overwritten=""):
    """The last token's logits, with some of what the first layer has cached overwritten before each later piece."""
    cache = DynamicCache(config=model.config)
    for begin in range(0, tokens.shape[1], 4):
        for state in getattr(cache.layers[0], overwritten).values() if begin and overwritten else ():
            state.fill_(1000)
        logits = model(tokens[:, begin : begin + 4], past_key_values=cache, use_cache=True).logits[:, -1]
    return logits


off = {}
for config in CONFIGS:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    tokens = torch.randint(1, 64, (1, 11))

    def next_logits(size, model=model, tokens=tokens):
        options = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        return model.generate(tokens, prefill_chunk_size=size, **options).logits[0]

    whole, pieces = next_logits(None), in_pieces_of_four(model, tokens)
    name = config.model_type
    print(f"{name}, 11 tokens, logits of the next one (largest {whole.abs().max().item():.2f}), furthest from the whole prefill's:")
    for size in (1, 2, 4, 8):
        off[name, size] = distance(next_logits(size), whole)
        print(f"  prefill_chunk_size={size}: {off[name, size]:.1e}")
    for state in ("conv_states", "recurrent_states"):
        off[name, state] = distance(in_pieces_of_four(model, tokens, state), pieces)
        print(f"  pieces of 4, the first layer's {state} overwritten between them: another {off[name, state]:.1e}")

wrong = {key for key, value in off.items() if value > 0.05}
granite = {("granitemoehybrid", state) for state in ("conv_states", "recurrent_states")}
expected = {("jamba", what) for what in (2, 4, 8, "conv_states")} | granite
sys.exit(0 if wrong == expected and off["jamba", "recurrent_states"] == 0 else 1)
PY
"$folder/venv/bin/python" "$folder/pieces.py" ||
    { echo "changed; it was: jamba wrong but for 1, and the same whatever its recurrent_states; granitemoehybrid right" && exit 1; }
