#!/usr/bin/env bash
# Transformers 5.23.0 (openai 3.57.0, fastapi 0.165.0, torch 2.13.0, CPU): `transformers serve` and OpenAI's client mean different things by the
# same request, and say nothing.
# - `client.responses.create(...)` returns a str of events: a request that does not name `stream` is streamed. With `stream=False` it returns
#   a Response. (`/v1/chat/completions` streams on request only.)
# - `temperature=1.5` changes nothing for a model whose generation_config does not sample: the handlers set the temperature, not `do_sample`, and
#   the answer stays greedy. `generation_config='{"do_sample": true, ...}'` samples.
# - `n=2` gives one answer.
# - An error after a stream has begun comes as `data: {"error": "..."}` with the message unescaped: one with a quotation mark is no JSON, and the
#   client raises JSONDecodeError instead of APIError.
# Needs Python 3.10 to 3.14 and 2 GB in the temporary folder, 6 GB if torch comes with CUDA. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.4.6 \
    openai==3.57.0 fastapi==0.165.0 uvicorn==0.54.0 accelerate==1.15.0

cat >"$folder/serving.py" <<'PY'
import json
import logging
import os
import socket
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"
import openai
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.cli.serve import Serve
from transformers.cli.serving.model_manager import ModelManager

transformers.logging.set_verbosity_error()
logging.disable(logging.INFO)
words = ["<s>", *(f"w{number}" for number in range(63))]
core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<s>"))
core.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<s>", pad_token="<s>")
tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, eos_token_id=None)
model = LlamaForCausalLM(config).eval()
ModelManager._load_processor = lambda *_, **__: tokenizer  # no folder is read
ModelManager._load_model = lambda *_, **__: model

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
server = Serve(force_model="tiny", host="127.0.0.1", port=port, non_blocking=True, log_level="error")
while not server.server.started:
    time.sleep(0.05)
client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
chat = {"model": "tiny", "messages": [{"role": "user", "content": "w1 w2 w3"}], "max_tokens": 12}


def written(**options):
    return client.chat.completions.create(**chat, **options).choices


given = [type(client.responses.create(model="tiny", input="w1", max_output_tokens=2, **more)).__name__ for more in ({}, {"stream": False})]
greedy, hot = written()[0].message.content, {written(temperature=1.5, seed=seed)[0].message.content for seed in range(4)}
ask = json.dumps({"do_sample": True, "temperature": 1.5, "max_new_tokens": 12})
drawn = {written(seed=seed, extra_body={"generation_config": ask})[0].message.content for seed in range(4)}
answers = len(written(n=2))


def fail(*_, **__):
    raise ValueError('the word "sea" is wrong')


model.generate = fail
try:
    list(client.chat.completions.create(**chat, stream=True))
    raised = "nothing"
except Exception as error:
    raised = type(error).__name__
print("responses.create:", *given)
print("temperature 1.5 is greedy:", hot == {greedy}, "- do_sample draws:", len(drawn) > 1, "- answers to n=2:", answers)
print("a failed stream raises", raised)
sys.stdout.flush()
expected = (["str", "Response"], {greedy}, True, 1, "JSONDecodeError")
os._exit(0 if (given, hot, len(drawn) > 1, answers, raised) == expected else 1)  # its threads do not end
PY
"$folder/venv/bin/python" "$folder/serving.py" ||
    { echo "changed; it was: responses are streamed unasked, a temperature alone does not sample, n is ignored, errors in streams are no JSON" && exit 1; }
