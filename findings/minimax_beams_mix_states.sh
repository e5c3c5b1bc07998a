#!/usr/bin/env bash
# Transformers 5.23.0 (torch 2.13.0, CPU): beam search on MiniMax (model_type minimax) scores beams by the states of other beams, without a
# warning. `reorder_cache` makes the cached rows follow their beams. MiniMaxCache inherits it from DynamicCache, which does not know
# `linear_cache`, where the linear attention layers keep their states, so these stay in place. The logits that selected a returned beam are
# then not those of the model over its tokens, nor is its score, and the returned sequence differs from the one without a cache. Expected is
# the result without a cache, or with a `reorder_cache` that also moves these states. finemoe.record accepts `num_beams` as `generate` does
# and records the experts that were selected in these mixed states (docs/metrics.md).
# Needs Python 3.10 to 3.14 and 2 GB in the temporary folder, 6 GB if torch comes with CUDA. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.4.6

cat >"$folder/beams.py" <<'PY'
import sys

import torch
from transformers import AutoModelForCausalLM, MiniMaxConfig
from transformers.models.minimax.modeling_minimax import MiniMaxCache

torch.manual_seed(3)
config = MiniMaxConfig(
    vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    layer_types=["linear_attention", "full_attention"] * 2, block_size=8, num_local_experts=4, num_experts_per_tok=2,
    initializer_range=0.2, pad_token_id=0, bos_token_id=None, eos_token_id=None,
)  # fmt: skip
model = AutoModelForCausalLM.from_config(config).eval()
prompt = torch.randint(1, 64, (1, 8))


@torch.no_grad()
def furthest(kind, **options):
    """How far the logits along the returned beam are from one plain forward over its tokens."""
    options |= {"num_beams": 3, "max_new_tokens": 8, "do_sample": False, "output_logits": True, "output_scores": True}
    done = model.generate(prompt, return_dict_in_generate=True, **options)
    used = torch.stack([step[row] for step, row in zip(done.logits, done.beam_indices[0])])
    plain = model(done.sequences, use_cache=False).logits[0, 7:-1]
    new = done.sequences[0, 8:]
    score = plain.log_softmax(-1)[range(8), new].mean().item()
    far = (used - plain).abs().max().item()
    print(f"{kind}: {new.tolist()}, score said {done.sequences_scores[0].item():.3f}, score by one forward {score:.3f}")
    print(f"  logits along the beam, furthest from that forward's (largest {plain.abs().max().item():.2f}): {far:.1e}")
    return far, new.tolist()


def reorder_all(self, beams):
    super(MiniMaxCache, self).reorder_cache(beams)
    self.linear_cache = [state.index_select(0, beams) if torch.is_tensor(state) else state for state in self.linear_cache]


cached, cached_tokens = furthest("cached")
uncached, uncached_tokens = furthest("without a cache", use_cache=False)
MiniMaxCache.reorder_cache = reorder_all
moved, moved_tokens = furthest("cached, these states moved too")
is_wrong = cached > 0.05 and cached_tokens != uncached_tokens
sys.exit(0 if is_wrong and max(uncached, moved) < 1e-3 and moved_tokens == uncached_tokens else 1)
PY
"$folder/venv/bin/python" "$folder/beams.py" ||
    { echo "changed; it was: only the first is far from one forward, and returns other tokens" && exit 1; }
