#!/usr/bin/env bash
# Transformers 5.23.0 (torch 2.13.0, CPU): in deepseek_v32, the output for a token can depend on later tokens, in one plain forward without a
# cache: the logits of a prefix differ from those of the same tokens in the whole text. Sparse attention keeps each token's `index_topk` best
# keys. An index score passes a ReLU in every index head, so keys that no head selects all score exactly 0, and `torch.topk` chooses among
# equal scores by the length of the row: by the number of keys, including those of later tokens, although these are masked. With ties broken by
# position, the logits are the same. It takes few index heads: with 2, as in tiny test models, a key in four scores 0; with the released
# model's 64 it did not occur. (axk2, dots3_note, glm_moe_dsa, hy_v4 and mistral_large4 score in the same way.)
# finemoe.record records what each forward did: such a model may select other experts for the same token when it is fed in pieces or token
# by token, which `python -m tests.runtime.recording_matrix` counts as "no reference" (docs/metrics.md).
# Needs Python 3.10 to 3.14 and 2 GB in the temporary folder, 6 GB if torch comes with CUDA. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.4.6

cat >"$folder/ahead.py" <<'PY'
import sys

import torch
from transformers import AutoModelForCausalLM, DeepseekV32Config

LENGTH, SEEDS = 40, 5
plain_topk = torch.Tensor.topk


def topk_by_place(scores, k, dim=-1):
    values, indices = scores.sort(dim=dim, descending=True, stable=True)
    return torch.return_types.topk((values.narrow(dim, 0, k), indices.narrow(dim, 0, k)))


@torch.no_grad()
def changed(heads, kept, topk=plain_topk):
    """How many logits of the prefixes' tokens are not those of the whole text's same tokens."""
    torch.Tensor.topk = topk
    count = total = 0
    furthest = 0.0
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        config = DeepseekV32Config(
            vocab_size=64, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=0,
            kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, initializer_range=0.2,
            index_n_heads=heads, index_head_dim=16, index_topk=kept, pad_token_id=None, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config).eval()
        tokens = torch.randint(1, 64, (1, LENGTH))
        whole = model(tokens, use_cache=False).logits[0]
        for length in range(5, LENGTH):
            far = (model(tokens[:, :length], use_cache=False).logits[0] - whole[:length]).abs().amax(dim=-1)
            count, total, furthest = count + int((far > 1e-3).sum()), total + length, max(furthest, far.max().item())
    print(f"{heads} index heads, {kept} keys kept, {topk.__name__}: {count} of {total} differ, by up to {furthest:.1e}")
    return count


values = torch.cat([torch.zeros(6), torch.full((34,), -torch.inf)])
print("torch.topk(3) of six zeros:", values[:6].topk(3).indices.tolist(), "before 34 of -inf:", values.topk(3).indices.tolist())
seen = changed(2, 4), changed(2, 4, topk_by_place), changed(2, LENGTH), changed(64, 4)
sys.exit(0 if seen[0] > 0 and not any(seen[1:]) else 1)
PY
"$folder/venv/bin/python" "$folder/ahead.py" ||
    { echo "changed; it was: some differ with 2 heads, 4 keys and torch's topk, and none else" && exit 1; }
