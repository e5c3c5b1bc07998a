#!/usr/bin/env bash
# Transformers 5.23.0 (gguf 0.19.0, torch 2.13.0, CPU): a GGUF file of Mixtral, loaded by `AutoModelForCausalLM.from_pretrained(gguf_file=...)`,
# becomes a dense Llama whose MLPs are random and differ on every load; nothing raises. llama.cpp calls Mixtral's architecture "llama", with
# `llama.expert_count` 8; Transformers maps that architecture to Llama and ignores this key. It silently drops all experts and routers of
# the file: `unexpected_keys` is empty. The only sign is a warning that reports MISSING parameters. MixtralForCausalLM, if named explicitly,
# is built with its eight experts and finds the routers, but its experts are random. Expected is a Mixtral, or "not supported yet", which is
# the answer for a file of an unknown architecture.
# finemoe reads the number of experts and builds a Mixtral configuration itself (finemoe/runtime/gguf_config.py).
# Needs Python 3.10 to 3.14 and 2 GB in the temporary folder, 6 GB if torch comes with CUDA. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.4.6 \
    accelerate==1.15.0 gguf==0.19.0

cat >"$folder/mixtral.py" <<'PY'
import sys

import numpy as np
import torch
import transformers
from gguf import GGUFWriter
from transformers import AutoModelForCausalLM, MixtralForCausalLM

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
HIDDEN, HEADS, KEYS, HEAD, WIDTH, EXPERTS, WORDS, LAYERS = 64, 4, 2, 16, 96, 8, 128, 2
folder = sys.argv[1]


def write(path, architecture):
    """A small model with Mixtral's keys and tensors, in float32."""
    random = np.random.default_rng(0)
    file = GGUFWriter(path, architecture)
    for add, value in (
        (file.add_name, "Mixtral"), (file.add_vocab_size, WORDS), (file.add_context_length, 128), (file.add_embedding_length, HIDDEN),
        (file.add_block_count, LAYERS), (file.add_feed_forward_length, WIDTH), (file.add_rope_dimension_count, HEAD),
        (file.add_head_count, HEADS), (file.add_head_count_kv, KEYS), (file.add_layer_norm_rms_eps, 1e-5),
        (file.add_rope_freq_base, 1e6), (file.add_expert_count, EXPERTS), (file.add_expert_used_count, 2), (file.add_file_type, 0),
        (file.add_tokenizer_model, "llama"), (file.add_token_list, [f"<{word}>" for word in range(WORDS)]),
        (file.add_token_scores, [0.0] * WORDS), (file.add_token_types, [1] * WORDS),
    ):  # fmt: skip
        add(value)
    shapes = {"token_embd": (WORDS, HIDDEN), "output": (WORDS, HIDDEN), "output_norm": (HIDDEN,)}
    layer = {"attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,), "attn_q": (HEADS * HEAD, HIDDEN), "attn_k": (KEYS * HEAD, HIDDEN)}
    layer |= {"attn_v": (KEYS * HEAD, HIDDEN), "attn_output": (HIDDEN, HEADS * HEAD), "ffn_gate_inp": (EXPERTS, HIDDEN)}
    layer |= {"ffn_gate_exps": (EXPERTS, WIDTH, HIDDEN), "ffn_up_exps": (EXPERTS, WIDTH, HIDDEN), "ffn_down_exps": (EXPERTS, HIDDEN, WIDTH)}
    shapes |= {f"blk.{number}.{name}": shape for number in range(LAYERS) for name, shape in layer.items()}
    for name, shape in shapes.items():
        file.add_tensor(f"{name}.weight", (0.1 * random.standard_normal(shape)).astype(np.float32))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def load(kind, name):
    return kind.from_pretrained(folder, gguf_file=name, output_loading_info=True)


write(f"{folder}/mixtral.gguf", "llama")
(model, told), (again, _) = (load(AutoModelForCausalLM, "mixtral.gguf") for _ in range(2))
tokens = torch.arange(8)[None]
apart = (model(tokens).logits - again(tokens).logits).abs().max().item()
missing = {name.split(".", 3)[3].removesuffix(".weight") for name in told["missing_keys"]}
print(f"{type(model).__name__}: not found {sorted(missing)}, found and not used {sorted(told['unexpected_keys'])}")
print(f"loaded twice its logits are up to {apart:.1e} apart")
by_name, told_by_name = load(MixtralForCausalLM, "mixtral.gguf")
random = {name.split(".", 3)[3] for name in told_by_name["missing_keys"]}
print(f"{type(by_name).__name__}, {by_name.config.num_local_experts} experts: not found {sorted(random)}")
write(f"{folder}/unknown.gguf", "grok")
try:
    load(AutoModelForCausalLM, "unknown.gguf")
    refused = ""
except ValueError as error:
    refused = str(error)
print(f"another architecture: {refused!r}")
dense = type(model).__name__ == "LlamaForCausalLM" and missing == {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
silent = not told["unexpected_keys"] and apart > 0
named = random == {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"} and by_name.config.num_local_experts == EXPERTS
sys.exit(0 if dense and silent and named and "not supported yet" in refused else 1)
PY
TQDM_DISABLE=1 "$folder/venv/bin/python" "$folder/mixtral.py" "$folder" ||
    { echo "changed; it was: a dense Llama with random MLPs, other ones each time, and by name a Mixtral with random experts" && exit 1; }
