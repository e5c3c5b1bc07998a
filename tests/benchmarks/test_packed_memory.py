"""Memory while a packed checkpoint is loaded (run with `make bench`): at least 1 GB of it, in shards.

A process of its own loads it; its peak resident memory above what it had before may be the packed experts (the records), the rest
of the model, one shard, and 200 MB. Nothing is unpacked while loading, and nothing is there twice.
"""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

pytestmark = pytest.mark.timeout(600)  # more than the memory

SLACK_BYTES, SLOTS_BYTES = 200_000_000, 64 << 20
_HIDDEN, _LAYERS = 1024, 16
_COMMON = {"vocab_size": 512, "max_position_embeddings": 256, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}
_COMMON |= {"hidden_size": _HIDDEN, "num_hidden_layers": _LAYERS, "num_experts_per_tok": 4, "dtype": "bfloat16"}

CHILD = """
import json, re, sys
import torch, finemoe
from tests.runtime.models import build, padded_batch

def memory(field):
    return int(re.search(field + r":\\s+(\\d+) kB", open("/proc/self/status").read()).group(1)) * 1024

small = build("mixtral", torch.bfloat16)
with finemoe.offload(small, 0.3):  # every library is loaded and every kernel compiled before the baseline is taken
    small.generate(**padded_batch(), max_new_tokens=3)
del small
import finemoe.runtime.checkpoint, finemoe.runtime.pretrained
from finemoe.packing.warm_up import warm_up
warm_up()
baseline = memory("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
folder, slots = json.loads(sys.argv[1])
model, engine = finemoe.load(folder, slots, "on-demand")
loading = memory("VmHWM") - baseline
rest = sum(p.numel() * p.element_size() for p in model.parameters() if p.untyped_storage().nbytes() >= p.nbytes)
with torch.no_grad():
    finite = bool(model(torch.arange(8)[None]).logits.isfinite().all())
print(json.dumps({"loading": loading, "records": engine.records.host_bytes, "slots": engine.expert_memory_bytes, "rest": rest,
                  "finite": finite, "formats": engine.records.layouts[0].packing.formats}))
"""


def _fp8(folder):
    """Qwen3-MoE in blocks of 128."""
    experts, width, block = 40, 512, 128
    config = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]} | _COMMON
    config |= {"num_experts": experts, "moe_intermediate_size": width}
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [block, block], "activation_scheme": "dynamic"}

    def layer(index):
        found = _attention(index) | {f"model.layers.{index}.mlp.gate.weight": _small(experts, _HIDDEN)}
        for expert in range(experts):
            for name, shape in {"gate": (width, _HIDDEN), "up": (width, _HIDDEN), "down": (_HIDDEN, width)}.items():
                weight = f"model.layers.{index}.mlp.experts.{expert}.{name}_proj.weight"
                found[weight] = torch.randint(0, 126, shape, dtype=torch.uint8).view(torch.float8_e4m3fn)
                found[f"{weight}_scale_inv"] = torch.full((shape[0] // block, shape[1] // block), 1e-4)
        return found

    _write(folder, config, layer)


def _mxfp4(folder):
    """gpt-oss, whose experts lie side by side in one tensor a layer."""
    experts, width = 48, 896
    config = {"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"]} | _COMMON
    config |= {"num_local_experts": experts, "intermediate_size": width}
    config["quantization_config"] = {"quant_method": "mxfp4"}

    def layer(index):
        found = _attention(index)
        for name in ("q", "k", "v", "o"):
            rows = found[f"model.layers.{index}.self_attn.{name}_proj.weight"].shape[0]
            found[f"model.layers.{index}.self_attn.{name}_proj.bias"] = torch.zeros(rows, dtype=torch.bfloat16)
        found[f"model.layers.{index}.self_attn.sinks"] = torch.zeros(8, dtype=torch.bfloat16)
        found[f"model.layers.{index}.mlp.router.weight"] = _small(experts, _HIDDEN)
        found[f"model.layers.{index}.mlp.router.bias"] = torch.zeros(experts, dtype=torch.bfloat16)
        for name, rows, columns in (("gate_up", 2 * width, _HIDDEN), ("down", _HIDDEN, width)):
            weight = f"model.layers.{index}.mlp.experts.{name}_proj"
            found[f"{weight}_blocks"] = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
            found[f"{weight}_scales"] = torch.full((experts, rows, columns // 32), 118, dtype=torch.uint8)
            found[f"{weight}_bias"] = torch.zeros(experts, rows, dtype=torch.bfloat16)
        return found

    _write(folder, config, layer)


def _attention(index):
    heads = {"q": (512, _HIDDEN), "k": (128, _HIDDEN), "v": (128, _HIDDEN), "o": (_HIDDEN, 512)}
    found = {f"model.layers.{index}.self_attn.{name}_proj.weight": _small(*shape) for name, shape in heads.items()}
    found |= {f"model.layers.{index}.self_attn.{name}_norm.weight": torch.ones(64, dtype=torch.bfloat16) for name in ("q", "k")}
    norms = ("input_layernorm", "post_attention_layernorm")
    return found | {f"model.layers.{index}.{name}.weight": torch.ones(_HIDDEN, dtype=torch.bfloat16) for name in norms}


def _small(*shape):
    return torch.randn(shape).mul_(0.02).bfloat16()


def _write(folder, config, layer):
    torch.manual_seed(0)
    outside = {"model.embed_tokens.weight": _small(512, _HIDDEN), "lm_head.weight": _small(512, _HIDDEN)}
    outside["model.norm.weight"] = torch.ones(_HIDDEN, dtype=torch.bfloat16)
    shards = [outside, *(None for _ in range(_LAYERS))]
    places = {}
    for number in range(len(shards)):
        tensors, name = (outside if number == 0 else layer(number - 1)), f"model-{number:05}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("write", [_fp8, _mxfp4])
def test_peak_memory_of_loading_a_packed_checkpoint(benchmark, tmp_path, write):
    write(tmp_path)
    sizes = [file.stat().st_size for file in tmp_path.glob("*.safetensors")]
    argument = json.dumps([str(tmp_path), SLOTS_BYTES])

    def run():
        done = subprocess.run([sys.executable, "-c", CHILD, argument], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    found = benchmark.pedantic(run, rounds=1)
    allowed = sum(sizes) + max(sizes) + SLACK_BYTES
    benchmark.extra_info.update(found, checkpoint=sum(sizes), shard=max(sizes), allowed=allowed)
    assert sum(sizes) >= 1e9
    assert found["finite"]
    assert found["loading"] <= allowed
