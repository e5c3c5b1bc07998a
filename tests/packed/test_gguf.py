"""`finemoe.load` of GGUF files: bit-equal to the same file unpacked by Transformers, or, for Mixtral, by the gguf package."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize
from transformers import AutoConfig, AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel

import finemoe
from finemoe.errors import FinemoeError
from finemoe.packing.gguf import Gguf, block_of
from finemoe.policies import LIVE_POLICIES
from finemoe.runtime.loading import load_tokenizer
from tests.packed import gguf_files as files
from tests.packed.gguf_files import HEADS, KV_HEADS, NAME, VOCABULARY, Content, Shape, everywhere
from tests.packed.outputs import assert_equal, outputs
from tests.runtime.models import padded_batch

NARROW = Shape(hidden=96, intermediate=160, shared=64)  # rows that no block of 256 fits
TYPES = sorted((kind for kind in Type if block_of(int(kind))), key=lambda kind: kind.name)


def mixed(name: str) -> Type:
    """As llama.cpp mixes types: more bits for some layers' down, and for the embedding; norms and routers in F32."""
    if "down_exps" in name:
        return Type.Q6_K if "blk.0" in name else Type.Q4_K
    if "_inp" in name or "conv" in name or "ssm" in name:
        return Type.F32
    if name in ("token_embd.weight", "output.weight"):
        return Type.Q8_0
    return Type.Q5_0 if "attn_output" in name or "ssm_out" in name else Type.Q4_K


def fallen_back(name: str) -> Type:
    """As llama.cpp does where rows are no multiple of 256."""
    if "down_exps" in name:
        return Type.Q5_0 if "blk.0" in name else Type.Q8_0
    return Type.Q5_1 if "gate_exps" in name else Type.Q4_1 if "up_exps" in name else Type.F16 if "attn" in name else Type.F32


CASES: dict[str, Callable[[], Content]] = {
    "qwen3moe Q4_K": lambda: files.qwen3moe(everywhere(Type.Q4_K)),
    "qwen3moe mixed": lambda: files.qwen3moe(mixed),
    "qwen3moe BF16, tied": lambda: files.qwen3moe(everywhere(Type.BF16), Shape(64, 32, num_experts=5, layers=3, tied=True)),
    "qwen2moe Q8_0": lambda: files.qwen2moe(everywhere(Type.Q8_0), NARROW),
    "qwen2moe mixed": lambda: files.qwen2moe(mixed),
    "qwen2moe fallen back": lambda: files.qwen2moe(fallen_back, NARROW),
    "qwen2moe F32": lambda: files.qwen2moe(everywhere(Type.F32), NARROW),
    "mixtral Q6_K": lambda: files.mixtral(everywhere(Type.Q6_K), Shape(num_experts=6)),
    "mixtral mixed": lambda: files.mixtral(mixed),
    "mixtral Q4_0": lambda: files.mixtral(everywhere(Type.Q4_0), NARROW),
    "mixtral F16, one each": lambda: files.mixtral(everywhere(Type.F16), NARROW, apart=True),
    "mixtral IQ4_XS, tied": lambda: files.mixtral(everywhere(Type.IQ4_XS), Shape(tied=True)),
    "minimax_m2 Q3_K": lambda: files.minimax_m2(everywhere(Type.Q3_K)),
    "qwen35moe Q5_K": lambda: files.qwen35moe(everywhere(Type.Q5_K)),
    "qwen35moe Q2_K": lambda: files.qwen35moe(everywhere(Type.Q2_K), Shape(tied=True)),
    "qwen35moe F16": lambda: files.qwen35moe(everywhere(Type.F16), NARROW),
}
FEW = ("qwen3moe mixed", "qwen2moe fallen back", "mixtral mixed", "qwen35moe Q5_K")


@dataclass
class Case:
    """A file, and what its references gave, by type."""

    file: Path
    content: Content
    expected: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def outputs(self, dtype: str = "auto") -> list[torch.Tensor]:
        """Of the reference."""
        if dtype not in self.expected:
            self.expected[dtype] = outputs_of(reference(self, dtype))
        return self.expected[dtype]


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Callable[[str], Case]:
    """Files by name, each made once."""
    cases: dict[str, Case] = {}

    def of(name: str) -> Case:
        if name not in cases:
            content = CASES[name]()
            cases[name] = Case(content.write(tmp_path_factory.mktemp("gguf")), content)
        return cases[name]

    return of


def reference(found: Case, dtype: str = "auto") -> PreTrainedModel:
    """Transformers' own model of the file, or a Mixtral of what the gguf package makes of it."""
    if found.content.architecture == "llama":
        return mixtral_by_hand(found.content, torch.float32 if dtype == "auto" else getattr(torch, dtype))
    config = AutoConfig.from_pretrained(found.file.parent, gguf_file=NAME)
    metadata = found.content.metadata
    for name, key in (("moe_intermediate_size", "expert_feed"), ("shared_expert_intermediate_size", "expert_shared_feed")):
        if hasattr(config, name):  # which Transformers leaves at 768, 1408 or 5632 for some architectures
            setattr(config, name, metadata.get(f"{found.content.architecture}.{key}_forward_length"))
    told = {"gguf_file": NAME, "config": config, "dtype": dtype, "experts_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(found.file.parent, **told).eval()
    for parameter in model.parameters():  # from NumPy's memory, which begins anywhere, on which kernels of some CPUs depend
        parameter.data = parameter.data.clone()
    return model


def mixtral_by_hand(content: Content, dtype: torch.dtype) -> MixtralForCausalLM:
    """Transformers' Mixtral with weights that the gguf package unpacked, each rounded once."""

    def told(key: str) -> Any:
        return content.metadata[f"llama.{key}"]

    head_dim = told("rope.dimension_count")
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=told("embedding_length"),
        intermediate_size=told("feed_forward_length"),
        num_hidden_layers=told("block_count"),
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=head_dim,
        max_position_embeddings=told("context_length"),
        rms_norm_eps=float(np.float32(told("attention.layer_norm_rms_epsilon"))),
        rope_parameters={"rope_type": "default", "rope_theta": told("rope.freq_base")},
        num_local_experts=told("expert_count"),
        num_experts_per_tok=told("expert_used_count"),
        tie_word_embeddings="output.weight" not in content.tensors,
    )
    model = MixtralForCausalLM._from_config(config, dtype=dtype, experts_implementation="eager").eval()
    made = {"model.embed_tokens.weight": content.floats("token_embd.weight")}
    made["model.norm.weight"] = content.floats("output_norm.weight")
    made["lm_head.weight"] = content.floats("token_embd.weight" if config.tie_word_embeddings else "output.weight")
    for layer in range(config.num_hidden_layers):
        own, theirs = f"model.layers.{layer}.", f"blk.{layer}."
        made[f"{own}input_layernorm.weight"] = content.floats(f"{theirs}attn_norm.weight")
        made[f"{own}post_attention_layernorm.weight"] = content.floats(f"{theirs}ffn_norm.weight")
        for name, part, heads in (("q_proj", "q", HEADS), ("k_proj", "k", KV_HEADS)):
            made[f"{own}self_attn.{name}.weight"] = halves(content.floats(f"{theirs}attn_{part}.weight"), heads, head_dim)
        made[f"{own}self_attn.v_proj.weight"] = content.floats(f"{theirs}attn_v.weight")
        made[f"{own}self_attn.o_proj.weight"] = content.floats(f"{theirs}attn_output.weight")
        made[f"{own}mlp.gate.weight"] = content.floats(f"{theirs}ffn_gate_inp.weight")
        gate, up, down = (experts(content, layer, part) for part in ("gate", "up", "down"))
        made[f"{own}mlp.experts.gate_up_proj"] = np.concatenate((gate, up), axis=1)
        made[f"{own}mlp.experts.down_proj"] = down
    model.load_state_dict({name: torch.from_numpy(values) for name, values in made.items()})
    return model


def experts(content: Content, layer: int, part: str) -> np.ndarray:
    """All experts' matrices, [experts, rows, columns]."""
    stacked = f"blk.{layer}.ffn_{part}_exps.weight"
    if stacked in content.tensors:
        return content.floats(stacked)
    count = content.metadata["llama.expert_count"]
    return np.stack([content.floats(f"blk.{layer}.ffn_{part}.{expert}.weight") for expert in range(count)])


def halves(rows: np.ndarray, heads: int, head_dim: int) -> np.ndarray:
    """A head's rows in Transformers' order: rotated pairs lie half a head apart, not side by side."""
    order = [head * head_dim + 2 * pair + half for head in range(heads) for half in (0, 1) for pair in range(head_dim // 2)]
    return rows[order]


def outputs_of(model: PreTrainedModel) -> list[torch.Tensor]:
    """See `outputs`."""
    return outputs(model, padded_batch())


def assert_loads_equal(found: Case, memory: Any, policy: str, dtype: str = "auto", **options: Any) -> None:
    model, engine = finemoe.load(found.file, memory, policy, dtype=dtype, **options)
    with engine:
        assert_equal(outputs_of(model), found.outputs(dtype))


@pytest.mark.parametrize("memory", [0.25, 0.5, 1.0, "bytes"])
@pytest.mark.parametrize("name", CASES)
def test_every_file_at_every_size_of_the_cache(case, name, memory):
    found = case(name)
    if memory == "bytes":  # three experts, and the room in which one of them is unpacked
        _, engine = finemoe.load(found.file, 1.0, "on-demand")
        with engine:
            rooms = [layout.packing.weights.nbytes for layout in engine.records.layouts if layout.packing]
            memory = 3 * engine.records.record_bytes + max(rooms, default=0)
    assert_loads_equal(found, memory, "finemoe")


@pytest.mark.parametrize("policy", LIVE_POLICIES)
@pytest.mark.parametrize("name", FEW)
def test_every_policy(case, name, policy):
    assert_loads_equal(case(name), 0.4, policy)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_every_type_of_weights(case, name, dtype):
    assert_loads_equal(case(name), 0.4, "on-demand", dtype)


@pytest.mark.parametrize("options", [{"host_memory": "100KB"}, {"slots": "unpacked"}, {"devices": 2}, {"asynchronous": False}])
def test_tiers_slots_and_devices(case, options):
    for name in FEW:
        assert_loads_equal(case(name), 0.4, "finemoe", **options)


def test_a_file_of_the_width_that_transformers_expects_needs_no_help(tmp_path):
    content = files.qwen3moe(everywhere(Type.Q4_K), Shape(intermediate=768))
    content.write(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=NAME, experts_implementation="eager").eval()
    assert model.config.moe_intermediate_size == 768
    loaded, engine = finemoe.load(tmp_path, 0.5)
    with engine:
        assert all(map(torch.equal, outputs_of(loaded), outputs_of(model)))


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_every_type_of_block_is_unpacked_as_the_gguf_package_does(kind, dtype):
    rows, columns = 64, 1024
    data = files.blocks(np.random.default_rng(3), (rows, columns), kind)
    data[:32] = files.flat(kind, 32, columns)  # every byte of a block the same, for every value of a byte
    data[32:40, ::2] ^= np.arange(8, dtype=np.uint8)[:, None]
    data = np.where(np.isfinite(dequantize(data, kind)).all(axis=1, keepdims=True), data, 0)
    codec = Gguf.of((rows, columns), int(kind))
    out = torch.empty((rows, columns), dtype=dtype)
    codec.unpack([torch.from_numpy(data)], out)
    expected = torch.from_numpy(dequantize(data, kind)).to(dtype)
    assert torch.equal(out, expected)
    assert torch.equal(torch.signbit(out), torch.signbit(expected))
    assert codec.format == f"gguf {kind.name}"
    assert codec.tensors[0].shape == data.shape


@pytest.mark.parametrize("name", ["qwen3moe mixed", "qwen2moe fallen back", "mixtral Q6_K", "qwen35moe F16"])
def test_records_hold_the_files_own_bytes(case, name):
    found = case(name)
    _, engine = finemoe.load(found.file, 0.5, "on-demand", dtype="bfloat16")
    with engine:
        for layer, layout in enumerate(engine.records.layouts):
            stored = [found.content.tensors[f"blk.{layer}.ffn_{part}_exps.weight"] for part in ("gate", "up", "down")]
            assert layout.nbytes == sum(-(-values[0].nbytes // 16) * 16 for _, values in stored)
            assert layout.packing is not None
            for expert in range(engine.records.counts[layer]):
                record = engine.records.record(layer, expert)
                for field_, (kind, values) in zip(layout.fields, stored, strict=True):
                    per_block, num_bytes = gguf.GGML_QUANT_SIZES[kind]
                    wide = found.content.floats("blk.0.ffn_gate_exps.weight").shape
                    assert field_.nbytes == wide[1] * wide[2] // per_block * num_bytes
                    own = record[field_.offset_bytes : field_.offset_bytes + field_.nbytes].numpy()
                    assert own.tobytes() == values[expert].tobytes()


def test_types_may_differ_between_layers(case):
    _, engine = finemoe.load(case("qwen3moe mixed").file, 0.5)
    with engine:
        first, second = (layout.packing.formats for layout in engine.records.layouts)
    assert (first, second) == (["gguf Q4_K", "gguf Q6_K"], ["gguf Q4_K"])


def test_experts_in_the_models_own_type_are_not_packed(case):
    for name, dtype in (("qwen2moe F32", "auto"), ("qwen3moe BF16, tied", "bfloat16"), ("qwen35moe F16", "auto")):
        _, engine = finemoe.load(case(name).file, 0.5, dtype=dtype)
        with engine:
            assert all(layout.packing is None for layout in engine.records.layouts)


def test_auto_is_what_transformers_makes_of_the_file(case):
    expected = {"qwen3moe Q4_K": torch.float32, "qwen2moe F32": torch.float32, "qwen35moe Q5_K": torch.float32}
    expected |= {"qwen3moe BF16, tied": torch.float32, "qwen35moe F16": torch.float16}
    for name, dtype in expected.items():
        model, engine = finemoe.load(case(name).file, 0.5)
        engine.close()
        assert model.dtype == dtype == case(name).outputs()[0].dtype


def test_the_tokenizer_comes_from_the_file(case):
    for name in FEW[:1]:
        for source in (case(name).file, case(name).file.parent):
            tokenizer = load_tokenizer(str(source))
            assert tokenizer("ab!")["input_ids"] == [3, 4]
            assert tokenizer.padding_side == "left"


def refused(source: Path, match: str, **options: Any) -> None:
    with pytest.raises(FinemoeError, match=match) as caught:
        finemoe.load(source, 0.5, **options)
    assert "\n" not in str(caught.value)


@pytest.fixture
def content() -> Content:
    return files.qwen3moe(everywhere(Type.Q8_0), NARROW)


@pytest.mark.parametrize("share", [0.001, 0.02, 0.06, 0.5, 0.999])
def test_a_truncated_file(content, tmp_path, share):
    file = content.write(tmp_path)
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    refused(file, r"tiny\.gguf: the file is truncated or damaged .*fetch it again")


@pytest.mark.parametrize("data", [b"", b"GG", b"PK\3\4 and more", b"GGUF"])
def test_no_gguf_file(tmp_path, data):
    (tmp_path / NAME).write_bytes(data)
    refused(tmp_path, "not a GGUF file|truncated or damaged")


@pytest.mark.slow
def test_bytes_changed_anywhere_in_the_header_are_refused_in_one_line_or_make_a_model(content, tmp_path):
    file = content.write(tmp_path)
    data, rng = bytearray(file.read_bytes()), np.random.default_rng(5)
    end = data.index(b"blk.0.ffn_down_exps.weight") + 100
    said = []
    for place in rng.integers(4, end, 100):
        changed = bytearray(data)
        changed[place] ^= 1 << rng.integers(8)
        file.write_bytes(changed)
        try:
            _, engine = finemoe.load(file, 0.5, "on-demand")
        except FinemoeError as error:
            said.append(str(error))
        else:
            engine.close()
    assert len(said) > 50
    assert not any("\n" in text for text in said)


def with_type(data: bytes, name: str, number: int) -> bytes:
    """A file's bytes with another type for a tensor, whose number follows its name and its sizes."""
    at = data.index(name.encode()) + len(name)
    count = int.from_bytes(data[at : at + 4], "little")
    at += 4 + 8 * count
    return data[:at] + number.to_bytes(4, "little") + data[at + 4 :]


def test_a_type_that_nobody_knows(content, tmp_path):
    file = content.write(tmp_path)
    file.write_bytes(with_type(file.read_bytes(), "blk.1.ffn_up_exps.weight", 99))
    refused(file, r"blk\.1\.ffn_up_exps\.weight is of an unknown type, 99; use a file of another type")


def test_a_type_of_experts_that_is_not_unpacked(tmp_path):
    file = files.qwen3moe(everywhere(Type.MXFP4), NARROW).write(tmp_path)
    refused(file, r"blk\.0\.ffn_gate_exps\.weight is MXFP4, which finemoe cannot unpack")


@pytest.mark.parametrize("part", ["gate", "up", "down"])
def test_an_experts_tensor_that_is_missing_or_of_another_shape(content, tmp_path, part):
    name = f"blk.1.ffn_{part}_exps.weight"
    kind, values = content.tensors.pop(name)
    refused(content.write(tmp_path), f"lacks {name}")
    content.tensors[name] = (kind, values[:-1])
    refused(content.write(tmp_path), rf"{name} has shape \(3, .*, not \(4, ")
    content.tensors[name] = (kind, values[:, :-32])
    refused(content.write(tmp_path), f"{name} has shape")


def test_other_tensors_that_are_missing_or_of_another_shape(content, tmp_path):
    name = "blk.1.attn_q.weight"
    kind, values = content.tensors.pop(name)
    refused(content.write(tmp_path), r"lacks model\.layers\.1\.self_attn\.q_proj\.weight .*read: tiny\.gguf")
    content.tensors[name] = (kind, values[:-8])
    refused(content.write(tmp_path), r"has shape \(120, 96\), not \(128, 96\), for model\.layers\.1\.self_attn\.q_proj\.weight")


def test_experts_one_each_of_which_one_is_missing_or_of_another_type(tmp_path):
    content = files.mixtral(everywhere(Type.Q8_0), NARROW, apart=True)
    name = "blk.1.ffn_down.2.weight"
    content.tensors[name] = (Type.Q4_0, files.blocks(np.random.default_rng(0), (96, 160), Type.Q4_0))
    refused(content.write(tmp_path), f"{name} is Q4_0, but blk.1.ffn_down.0.weight is Q8_0")
    del content.tensors[name]
    refused(content.write(tmp_path), f"lacks {name}")


def test_an_architecture_that_transformers_does_not_read(content, tmp_path):
    content.architecture = "deepseek2"
    refused(content.write(tmp_path), "cannot configure 'deepseek2': .*not supported.*safetensors")


def test_gpt_oss_of_whose_experts_transformers_reads_nothing(content, tmp_path):
    """It would fill them with random numbers, and warn."""
    content.architecture = "gpt-oss"
    content.metadata = {key.replace("qwen3moe", "gpt-oss"): value for key, value in content.metadata.items()}
    refused(content.write(tmp_path), "experts of gpt-oss are more than gate, up and down .*safetensors")


def test_a_model_without_experts(tmp_path):
    content = files.mixtral(everywhere(Type.Q8_0), NARROW)
    del content.metadata["llama.expert_count"]
    refused(content.write(tmp_path), "LlamaForCausalLM has no experts")


def test_a_mixtral_with_more_than_transformers_reads_of_a_llama(tmp_path):
    content = files.mixtral(everywhere(Type.Q8_0), NARROW)
    content.tensors["rope_freqs.weight"] = (Type.F32, np.ones(12, dtype=np.float32))
    refused(content.write(tmp_path), r"the file holds rope_freqs\.weight, for which MixtralForCausalLM has no weight")
    del content.tensors["rope_freqs.weight"]
    content.metadata["llama.rope.scaling.type"] = "yarn"
    refused(content.write(tmp_path), "positions are scaled by 'yarn'")


def test_several_files_and_parts_of_one(content, tmp_path):
    for name in ("b-00001-of-00002.gguf", "a.gguf"):
        content.write(tmp_path / name)
    refused(tmp_path, r"several GGUF files \(a\.gguf, b-00001-of-00002\.gguf\); give the path")
    _, engine = finemoe.load(tmp_path / "a.gguf", 0.5)
    engine.close()
    content.metadata["split.count"] = 2
    refused(content.write(tmp_path / "a.gguf"), "one of 2 parts of a model.*merge")


@pytest.mark.parametrize("name", ["gguf", "accelerate"])
def test_a_package_that_is_not_installed(content, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    refused(content.write(tmp_path), rf"needs {name}.*pip install 'finemoe\[quantised\]'")


def test_a_folder_with_a_safetensors_checkpoint_is_that(content, tmp_path):
    content.write(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "no usable configuration")
    with pytest.raises(FinemoeError, match=r"only finemoe\.load loads it"):
        finemoe.runtime.loading.load_model(str(tmp_path / NAME))


def test_packing_what_is_packed_already_is_refused(content, tmp_path):
    refused(content.write(tmp_path), "already packed", expert_format="fp8")


def test_experts_of_floats_may_be_packed_while_loading(case, tmp_path):
    _, engine = finemoe.load(case("qwen2moe F32").file, 0.5, expert_format="int8")
    with engine:
        assert engine.records.layouts[0].packing.formats == ["int8"]


MEMORY = """
import resource, sys, finemoe
from finemoe.runtime import gguf_step
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model, engine = finemoe.load(sys.argv[1], 0.1, "on-demand", dtype="bfloat16")
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, engine.records.host_bytes)
"""


@pytest.mark.slow
def test_loading_takes_no_more_memory_than_the_packed_experts(tmp_path):
    """Unpacked, they would take three and a half times as much in bfloat16, and seven in the float32 of Transformers' reader."""
    shape = Shape(hidden=1024, intermediate=1024, num_experts=60, layers=2)
    file = files.qwen3moe(everywhere(Type.Q4_K), shape).write(tmp_path)
    done = subprocess.run([sys.executable, "-c", MEMORY, str(file)], capture_output=True, text=True, check=True)
    before, most, packed = map(int, done.stdout.split())
    assert packed > 200e6
    assert (most - before) * 1024 < packed + 200e6
