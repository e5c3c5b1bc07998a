"""Memory of a model larger than its host budget (run with `make bench`): at least 2 GB of experts, a quarter of it in host
memory.

A process of its own loads the checkpoint and generates; its peak resident memory above what it had before is compared with what
was allowed: the host's share, the device's slots (host memory too on a CPU), and the rest of the model.
"""

import json
import subprocess
import sys

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from finemoe.models.layers import find_moe_layers
from finemoe.runtime.expert_layout import ExpertLayout

pytestmark = pytest.mark.timeout(900)  # more than the memory

SLOTS_BYTES, HOST_BYTES, SHARD_BYTES = 64 << 20, 512 << 20, 200 << 20
NEW_TOKENS = 8
PROMPT = list(range(3, 19))

CHILD = """
import json, re, sys
import torch, finemoe
from tests.runtime.models import build, padded_batch

def memory(field):
    return int(re.search(field + r":\\s+(\\d+) kB", open("/proc/self/status").read()).group(1)) * 1024

def restart_peak():
    open("/proc/self/clear_refs", "w").write("5")

small = build("mixtral", torch.bfloat16)
with finemoe.offload(small, 0.3):  # every library is loaded and every kernel compiled before the baseline is taken
    small.generate(**padded_batch(), max_new_tokens=3)
del small
baseline = memory("VmRSS")
restart_peak()
folder, host, slots, new_tokens, prompt = json.loads(sys.argv[1])
model, engine = finemoe.load(folder, slots, host_memory=host)
loading = memory("VmHWM") - baseline
restart_peak()
tokens = model.generate(torch.tensor([prompt]), max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
running = memory("VmHWM") - baseline
print(json.dumps({"loading": loading, "running": running, "tokens": tokens.tolist(),
                  "host": engine.records.host_bytes, "disk": engine.records.disk_bytes, "slots": engine.expert_memory_bytes,
                  "hit_rate": engine.report().hit_rate, "tpot_s": engine.report().tpot_s}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with a sharded bf16 checkpoint of 2.1 GB of experts, what it generates, and the bytes of everything else."""
    folder = tmp_path_factory.mktemp("large")
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 17, "num_local_experts": 40}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 256}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
    torch.manual_seed(0)
    with torch.device("cpu"):
        model = MixtralForCausalLM._from_config(MixtralConfig(**sizes, **heads, **tokens), dtype=torch.bfloat16).eval()
    model.set_experts_implementation("eager")
    layers = find_moe_layers(model)
    expert_bytes = sum(ExpertLayout.of(layer).nbytes * layer.num_experts for layer in layers)
    rest_bytes = sum(p.numel() * p.element_size() for p in model.parameters()) - expert_bytes
    model.save_pretrained(folder, max_shard_size=SHARD_BYTES)
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    return folder, model.generate(torch.tensor([PROMPT]), **options).tolist(), expert_bytes, rest_bytes


def test_peak_memory_of_a_model_four_times_its_host_budget(benchmark, checkpoint):
    folder, expected, expert_bytes, rest_bytes = checkpoint
    argument = json.dumps([str(folder), HOST_BYTES, SLOTS_BYTES, NEW_TOKENS, PROMPT])

    def run():
        done = subprocess.run([sys.executable, "-c", CHILD, argument], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    found = benchmark.pedantic(run, rounds=1)
    allowed = found["host"] + found["slots"] + rest_bytes
    assert expert_bytes >= 2e9
    assert expert_bytes >= 4 * found["host"]
    assert found["tokens"] == expected
    benchmark.extra_info.update(found, allowed=allowed, experts=expert_bytes, rest=rest_bytes, shard=SHARD_BYTES)
    assert found["running"] <= 1.1 * allowed
    assert found["loading"] <= allowed + SHARD_BYTES
