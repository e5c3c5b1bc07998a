#!/usr/bin/env bash
# Transformers 5.23.0 (torch 2.13.0, tokenizers, CPU): assisted decoding takes two tokenizers for the same if the vocabularies of the two models
# have the same size. `generate(assistant_model=..., tokenizer=..., assistant_tokenizer=...)` is then refused ("not required when the main and
# assistant models use the same tokenizer"), although the tokenizers differ. Without `assistant_tokenizer`, the assistant reads the prompt's
# ids as its own and its drafts are read as the model's ids: no warning, the same text, but hardly a draft is accepted. With one unused token more in
# the assistant's vocabulary, the same two models work together, and nearly all drafts are accepted. Expected is a comparison of the
# tokenizers, which the caller has given. An offloaded model shows it in `engine.report().drafts` (docs/generation.md).
# Needs Python 3.10 to 3.14 and 2 GB in the temporary folder, 6 GB if torch comes with CUDA. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.4.6

cat >"$folder/drafts.py" <<'PY'
import copy
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LETTERS = [chr(35 + number) for number in range(64)]


def tokenizer(order):
    vocabulary = {"<pad>": 0, **{letter: 1 + order.index(number) for number, letter in enumerate(LETTERS)}}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>")


torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=65, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, tie_word_embeddings=True,
    initializer_range=0.3, pad_token_id=0, bos_token_id=None, eos_token_id=None,
)  # fmt: skip
model = LlamaForCausalLM(config).eval()
order = torch.randperm(64).tolist()
ours, theirs = tokenizer(list(range(64))), tokenizer(order)
assistant = copy.deepcopy(model)  # the same model, but its tokens have other numbers
with torch.no_grad():
    assistant.model.embed_tokens.weight[1:] = model.model.embed_tokens.weight[1:][order]
assistant.generation_config.update(num_assistant_tokens=5, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0)
longer = copy.deepcopy(assistant)
longer.resize_token_embeddings(66)
with torch.no_grad():
    longer.model.embed_tokens.weight[65] = 0
prompt = ours("ABCDEFGH", return_tensors="pt").input_ids
num_forwards = 0
model.register_forward_pre_hook(lambda *_: globals().__setitem__("num_forwards", num_forwards + 1))


def generated(name, **options):
    global num_forwards
    num_forwards = 0
    fixed = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    try:
        tokens = model.generate(prompt, **fixed, **options)
    except ValueError as error:
        print(f"{name}: refused: {error}")
        return None
    print(f"{name}: {num_forwards} steps for 24 tokens, {ours.decode(tokens[0])!r}")
    return num_forwards, tokens.tolist()


both = {"tokenizer": ours, "assistant_tokenizer": theirs}
plain = generated("no assistant")
refused = generated("vocabularies of one size, both tokenizers given", assistant_model=assistant, **both)
silent = generated("vocabularies of one size, none given", assistant_model=assistant)
works = generated("one unused token more, both tokenizers given", assistant_model=longer, **both)
is_so = refused is None and silent[0] > 18 and works[0] < 8 and plain[1] == silent[1] == works[1]
sys.exit(0 if is_so else 1)
PY
"$folder/venv/bin/python" "$folder/drafts.py" ||
    { echo "changed; it was: refused, then (nearly) a step a token, then few steps" && exit 1; }
