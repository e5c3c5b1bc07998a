#!/usr/bin/env bash
# Transformers 5.23.0 (gguf 0.19.0, torch 2.13.0, CPU): qwen2moe, qwen3moe and gpt-oss are among the GGUF architectures that Transformers
# lists as supported, but it does not read valid files of them.
# Qwen-MoE: `expert_feed_forward_length` is not mapped, nor is that of the shared expert, so `moe_intermediate_size` is always the
# configuration's default: 768 for qwen3moe (that of Qwen3-30B-A3B) and 1408 for qwen2moe. A file with another width (Qwen3-235B-A22B has
# 1536) raises, because sizes do not match. `feed_forward_length`, the dense width, is mapped, but no layer uses it.
# gpt-oss: with the keys of YaRN, which both released models have, reading the configuration raises a TypeError, because the value is taken
# from the wrong part of the field (the length of its name). Without these keys nothing raises, and all experts are random: Transformers
# looks for tensors named `ffn_gate_projs`, which no file has; llama.cpp and the gguf package call them `ffn_gate_exps`.
# finemoe sets the widths that the file states (finemoe/runtime/gguf_config.py) and finds experts by the gguf package's names.
# Needs Python 3.10 to 3.14 and 2 GB in the temporary folder, 6 GB if torch comes with CUDA. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.4.6 \
    accelerate==1.15.0 gguf==0.19.0

cat >"$folder/widths.py" <<'PY'
import sys

import numpy as np
import transformers
from gguf import GGUFWriter, RopeScalingType
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
HIDDEN, HEADS, KEYS, HEAD, EXPERTS, WORDS = 64, 4, 2, 64, 4, 128
folder = sys.argv[1]


def write(architecture, width, yarn=False):
    """A one-layer model with the keys and tensors that llama.cpp gives the architecture, in float32. Returns its name."""
    name = f"{architecture}-{width}-{yarn}.gguf"
    random = np.random.default_rng(0)
    file = GGUFWriter(f"{folder}/{name}", architecture)
    for add, value in (
        (file.add_name, "small"), (file.add_context_length, 128), (file.add_embedding_length, HIDDEN), (file.add_block_count, 1),
        (file.add_feed_forward_length, width if architecture == "gpt-oss" else 160), (file.add_expert_feed_forward_length, width), (file.add_head_count, HEADS),
        (file.add_head_count_kv, KEYS), (file.add_key_length, HEAD), (file.add_value_length, HEAD), (file.add_layer_norm_rms_eps, 1e-5),
        (file.add_rope_freq_base, 1e6), (file.add_expert_count, EXPERTS), (file.add_expert_used_count, 2), (file.add_file_type, 0),
        (file.add_tokenizer_model, "gpt2"), (file.add_token_list, [f"<{word}>" for word in range(WORDS)]),
        (file.add_token_types, [1] * WORDS), (file.add_token_merges, ["< 1"]),
    ):  # fmt: skip
        add(value)
    if yarn:
        file.add_rope_scaling_type(RopeScalingType.YARN)
        file.add_rope_scaling_factor(32.0)
        file.add_rope_scaling_orig_ctx_len(4096)
    attention, kept = HEADS * HEAD, KEYS * HEAD
    layer = {"attn_norm.weight": (HIDDEN,), "attn_q.weight": (attention, HIDDEN), "attn_k.weight": (kept, HIDDEN)}
    layer |= {"attn_v.weight": (kept, HIDDEN), "attn_output.weight": (HIDDEN, attention), "ffn_gate_inp.weight": (EXPERTS, HIDDEN)}
    layer |= {f"ffn_{part}_exps.weight": (EXPERTS, width, HIDDEN) for part in ("gate", "up")}
    layer |= {"ffn_down_exps.weight": (EXPERTS, HIDDEN, width)}
    if architecture == "gpt-oss":
        file.add_sliding_window(128)
        layer |= {"post_attention_norm.weight": (HIDDEN,), "attn_sinks.weight": (HEADS,), "ffn_gate_inp.bias": (EXPERTS,)}
        layer |= {"attn_q.bias": (attention,), "attn_k.bias": (kept,), "attn_v.bias": (kept,), "attn_output.bias": (HIDDEN,)}
        layer |= {f"ffn_{part}_exps.bias": (EXPERTS, width) for part in ("gate", "up")} | {"ffn_down_exps.bias": (EXPERTS, HIDDEN)}
    else:
        layer |= {"ffn_norm.weight": (HIDDEN,), "attn_q_norm.weight": (HEAD,), "attn_k_norm.weight": (HEAD,)}
    shapes = {"token_embd.weight": (WORDS, HIDDEN), "output.weight": (WORDS, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for tensor, shape in (shapes | {f"blk.0.{part}": shape for part, shape in layer.items()}).items():
        file.add_tensor(tensor, (0.1 * random.standard_normal(shape)).astype(np.float32))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return name


def missing(name):
    """The parameters that the file's model lacks, or what it raises."""
    try:
        _, told = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, output_loading_info=True)
    except (RuntimeError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return sorted(key.removeprefix("model.layers.0.") for key in told["missing_keys"])


names = {width: write("qwen3moe", width) for width in (768, 96)}
widths = [AutoConfig.from_pretrained(folder, gguf_file=name).moe_intermediate_size for name in names.values()]
seen = [missing(name) for name in names.values()] + [missing(write("gpt-oss", 96, yarn)) for yarn in (True, False)]
print(f"qwen3moe, experts of width 768 and 96: moe_intermediate_size {widths}")
for what, result in zip(("qwen3moe 768", "qwen3moe 96", "gpt-oss", "gpt-oss without YaRN"), seen, strict=True):
    print(f"{what}: {result if isinstance(result, str) else f'loaded, missing {result}'}")
other = AutoConfig.from_pretrained(folder, gguf_file=write("qwen2moe", 96)).moe_intermediate_size
print(f"qwen2moe, experts of width 96: moe_intermediate_size {other}")
listed = {"qwen2_moe", "qwen3_moe", "gpt_oss"} <= set(GGUF_SUPPORTED_ARCHITECTURES)
experts = [f"mlp.experts.{part}{kind}" for part in ("down_proj", "gate_up_proj") for kind in ("", "_bias")]
qwen = seen[0] == [] and seen[1].startswith("RuntimeError") and (widths, other) == ([768, 768], 1408)
oss = seen[2].startswith("TypeError") and isinstance(seen[3], list) and set(experts) <= set(seen[3])
sys.exit(0 if listed and qwen and oss else 1)
PY
TQDM_DISABLE=1 "$folder/venv/bin/python" "$folder/widths.py" "$folder" ||
    { echo "changed; it was: qwen3moe read at 768 only, and gpt-oss a TypeError, or random experts" && exit 1; }
