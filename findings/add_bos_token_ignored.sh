#!/usr/bin/env bash
# Transformers 5.23.0 (tokenizers 0.23.3): `add_bos_token: true` in tokenizer_config.json is dropped without a word as soon as there is a
# tokenizer.json, whatever class the file names. Transformers 4.57.1 honoured it: the fast Llama tokenizer put the token before every text.
# Checkpoints whose tokenizer.json is byte-level and adds nothing itself, and whose tokenizer_config.json says LlamaTokenizerFast and
# add_bos_token (DeepSeek-V2 and its kin), therefore lose the first token of every prompt that goes through no chat template. Given in the
# call, `from_pretrained(..., add_bos_token=True)`, it still has an effect. Expected is the token, or a warning.
# A chat template names its first token itself, so chats are not affected. finemoe leaves prompts as Transformers makes them.
# Needs Python 3.10 to 3.13. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/tokens.py" <<'PY'
import json
import sys
from pathlib import Path

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

transformers.logging.set_verbosity_error()
folder = Path(sys.argv[1]) / "checkpoint"
folder.mkdir(exist_ok=True)
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer.train_from_iterator(["a sea"], trainers.BpeTrainer(vocab_size=256, initial_alphabet=alphabet, show_progress=False))
tokenizer.add_special_tokens(["<begin>", "<end>"])
tokenizer.save(str(folder / "tokenizer.json"))
fields = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "bos_token": "<begin>", "eos_token": "<end>"}
(folder / "tokenizer_config.json").write_text(json.dumps(fields))
(folder / "config.json").write_text(json.dumps({"model_type": "deepseek_v2"}))
found = AutoTokenizer.from_pretrained(folder)
asked = AutoTokenizer.from_pretrained(folder, add_bos_token=True)
texts = [one.decode(one("sea")["input_ids"]) for one in (found, asked)]
print(f"Transformers {transformers.__version__}: {texts[0]!r} as published, {texts[1]!r} if the call asks for it")
sys.exit(0 if texts[0] == sys.argv[2] and texts[1].startswith("<begin>") else 1)
PY
for case in "5.23.0 sea" "4.57.1 <begin>sea"; do
    read -r version expected <<<"$case"
    "${PYTHON:-python3}" -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check "transformers==$version"
    "$folder/$version/bin/python" "$folder/tokens.py" "$folder" "$expected" || { echo "changed; it was: '$expected'" && exit 1; }
done
