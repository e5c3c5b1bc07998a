"""GGUF files of tiny models, as llama.cpp's converter names and orders their tensors, with random blocks of any type.

Blocks are random bytes; only their scales are set, so that the weights they stand for are finite and of a usual size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize

NAME = "tiny.gguf"
VOCABULARY, HEADS, KV_HEADS, LAYERS, EXPERTS, ACTIVATED = 96, 4, 2, 2, 4, 2
_DEVIATION = 0.05  # of the weights
_SCALES = {  # where a block's scales begin, which are half floats; at its first byte where nothing else is said
    Type.Q4_1: (0, 2),
    Type.Q5_1: (0, 2),
    Type.Q2_K: (80, 82),
    Type.Q3_K: (108,),
    Type.Q4_K: (0, 2),
    Type.Q5_K: (0, 2),
    Type.Q6_K: (208,),
}
_FLOATS = {Type.F32: np.float32, Type.F16: np.float16}
Types = Callable[[str], Type]  # of a tensor, by its name


def everywhere(kind: Type) -> Types:
    """Experts of one type, all else in F32, as the tiny widths allow."""
    return lambda name: kind if "_exps" in name else Type.F32


@dataclass(frozen=True)
class Shape:
    """Sizes of a tiny model; num_experts as in `blk.N.ffn_*_exps`."""

    hidden: int = 256
    intermediate: int = 256
    shared: int = 256
    num_experts: int = EXPERTS
    layers: int = LAYERS
    tied: bool = False


@dataclass
class Content:
    """What a file holds: metadata by key, and tensors by name, each with its type and its values or blocks."""

    architecture: str
    metadata: dict[str, Any]
    tensors: dict[str, tuple[Type, np.ndarray]] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        """Write the file; a folder gets one called `tiny.gguf`."""
        file = path / NAME if path.is_dir() else path
        writer = gguf.GGUFWriter(file, self.architecture)
        for key, value in self.metadata.items():
            _add(writer, key, value)
        for name, (kind, values) in self.tensors.items():
            writer.add_tensor(name, values, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file

    def floats(self, name: str) -> np.ndarray:
        """A tensor as the gguf package unpacks it, float32."""
        kind, values = self.tensors[name]
        return np.asarray(dequantize(values, kind), dtype=np.float32)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)


def blocks(rng: np.random.Generator, shape: Sequence[int], kind: Type) -> np.ndarray:
    """Random values of a tensor: floats [*shape] of a plain type, or bytes [*shape[:-1], bytes of a row]."""
    if kind in _FLOATS:
        return (rng.standard_normal(shape) * _DEVIATION).astype(_FLOATS[kind])
    if kind == Type.BF16:
        values = (rng.standard_normal(shape) * _DEVIATION).astype(np.float32)
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(*shape[:-1], -1)
    per_block, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    assert shape[-1] % per_block == 0, f"{kind.name} takes rows of a multiple of {per_block}, not {shape[-1]}"
    count = int(np.prod(shape)) // per_block
    data = rng.integers(0, 256, (count, num_bytes), dtype=np.uint8)
    scales = _usual_scale(kind) * rng.uniform(0.5, 1.5, count)
    return _scaled(data, scales, kind).reshape(*shape[:-1], -1)


def flat(kind: Type, rows: int, columns: int) -> np.ndarray:
    """Blocks all of whose bytes but the scales are the same: the rows and blocks go through all values of a byte."""
    per_block, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    values = np.arange(rows * columns // per_block) % 256
    data = np.repeat(values.astype(np.uint8)[:, None], num_bytes, axis=1)
    return _scaled(data, np.full(len(data), 0.013), kind).reshape(rows, -1)


@cache
def _usual_scale(kind: Type) -> float:
    """The scale with which random blocks deviate as much as weights shall."""
    num_bytes = gguf.GGML_QUANT_SIZES[kind][1]
    data = np.random.default_rng(0).integers(0, 256, (64, num_bytes), dtype=np.uint8)
    return _DEVIATION / float(dequantize(_scaled(data, np.ones(64), kind), kind).std())


def _scaled(data: np.ndarray, scales: np.ndarray, kind: Type) -> np.ndarray:
    halves = scales.astype(np.float16)
    if kind == Type.IQ1_M:  # a nibble of the scale in each of the last four words
        words = data[:, 48:56].copy().view(np.uint16)
        nibbles = (halves.view(np.uint16)[:, None] >> np.array([0, 4, 8, 12], dtype=np.uint16)) & 15
        data[:, 48:56] = ((words & 0x0FFF) | (nibbles << 12)).view(np.uint8)
    elif kind == Type.MXFP4:
        data[:, 0] = np.round(np.log2(scales)).astype(np.int64) + 127
    else:
        for start in _SCALES.get(kind, (0,)):
            data[:, start : start + 2] = halves[:, None].view(np.uint8)
    return data


def qwen3moe(types: Types, shape: Shape = Shape(), seed: int = 0) -> Content:
    """A Qwen3-MoE; its heads are of another width than the hidden size says."""
    content = Content("qwen3moe", _metadata("qwen3moe", shape) | {"qwen3moe.attention.key_length": 32})
    make = _Maker(content, types, seed)
    make.rest(shape, head_dim=32, biased=False)
    for layer in range(shape.layers):
        for name in ("attn_q_norm", "attn_k_norm"):
            make(f"blk.{layer}.{name}.weight", 32)
        make.experts(layer, shape)
    return content


def qwen2moe(types: Types, shape: Shape = Shape(), seed: int = 0) -> Content:
    """A Qwen2-MoE, with a shared expert, behind a gate, and biases."""
    metadata = _metadata("qwen2moe", shape) | {"qwen2moe.expert_shared_feed_forward_length": shape.shared}
    content = Content("qwen2moe", metadata)
    make = _Maker(content, types, seed)
    make.rest(shape, head_dim=shape.hidden // HEADS, biased=True)
    for layer in range(shape.layers):
        make.shared(layer, shape)
        make.experts(layer, shape)
    return content


def mixtral(types: Types, shape: Shape = Shape(), seed: int = 0, apart: bool = False) -> Content:
    """A Mixtral, which llama.cpp calls a llama with experts; apart: one tensor an expert, as older files have it."""
    metadata = _metadata("llama", shape) | {
        "llama.feed_forward_length": shape.intermediate,
        "llama.rope.dimension_count": shape.hidden // HEADS,
        "llama.vocab_size": VOCABULARY,
    }
    content = Content("llama", metadata)
    make = _Maker(content, types, seed)
    make.rest(shape, head_dim=shape.hidden // HEADS, biased=False)
    for layer in range(shape.layers):
        make.experts(layer, shape, apart)
    return content


def minimax_m2(types: Types, shape: Shape = Shape(), seed: int = 0) -> Content:
    """A MiniMax-M2: norms over all heads, and a bias that chooses experts."""
    told = {
        "feed_forward_length": shape.intermediate,
        "rope.dimension_count": 16,
        "attention.key_length": 32,
        "expert_gating_func": 2,
    }
    metadata = _metadata("minimax-m2", shape) | {f"minimax-m2.{key}": value for key, value in told.items()}
    content = Content("minimax-m2", metadata)
    make = _Maker(content, types, seed)
    make.rest(shape, head_dim=32, biased=False)
    for layer in range(shape.layers):
        make(f"blk.{layer}.attn_q_norm.weight", HEADS * 32)
        make(f"blk.{layer}.attn_k_norm.weight", KV_HEADS * 32)
        make(f"blk.{layer}.exp_probs_b.bias", shape.num_experts)
        make.experts(layer, shape)
    return content


def qwen35moe(types: Types, shape: Shape = Shape(), seed: int = 0) -> Content:
    """A Qwen3.5-MoE of two layers, the first of which has linear attention; Transformers reads it by its newer way."""
    keys, values, width, head_dim = 2, 4, 16, 32  # heads of linear attention, their width; width of the other heads
    told = {
        "attention.key_length": head_dim,
        "full_attention_interval": 2,
        "ssm.conv_kernel": 4,
        "ssm.state_size": width,
        "ssm.group_count": keys,
        "ssm.time_step_rank": values,
        "ssm.inner_size": values * width,
        "rope.dimension_count": 16,
        "rope.dimension_sections": [3, 3, 2, 0],
        "expert_shared_feed_forward_length": shape.shared,
    }
    content = Content("qwen35moe", _metadata("qwen35moe", shape) | {f"qwen35moe.{key}": value for key, value in told.items()})
    make = _Maker(content, types, seed)
    make.ends(shape)
    mixed = (2 * keys + values) * width
    for layer in range(shape.layers):
        before = f"blk.{layer}."
        make(f"{before}attn_norm.weight", shape.hidden)
        make(f"{before}post_attention_norm.weight", shape.hidden)
        make(f"{before}ffn_gate_inp.weight", shape.num_experts, shape.hidden)
        make.shared(layer, shape)
        make.experts(layer, shape)
        if layer % 2:
            make(f"{before}attn_q.weight", 2 * HEADS * head_dim, shape.hidden)
            for name in ("k", "v"):
                make(f"{before}attn_{name}.weight", KV_HEADS * head_dim, shape.hidden)
            make(f"{before}attn_output.weight", shape.hidden, HEADS * head_dim)
            for name in ("q", "k"):
                make(f"{before}attn_{name}_norm.weight", head_dim)
        else:
            make(f"{before}attn_qkv.weight", mixed, shape.hidden)
            make(f"{before}attn_gate.weight", values * width, shape.hidden)
            make(f"{before}ssm_conv1d.weight", mixed, 4)
            make(f"{before}ssm_out.weight", shape.hidden, values * width)
            make(f"{before}ssm_norm.weight", width)
            make(f"{before}ssm_dt.bias", values)
            make(f"{before}ssm_a", values)
            for name in ("alpha", "beta"):
                make(f"{before}ssm_{name}.weight", values, shape.hidden)
            kind, logs = content.tensors[f"{before}ssm_a"]
            content.tensors[f"{before}ssm_a"] = (kind, -np.exp(logs))
    return content


def _metadata(architecture: str, shape: Shape) -> dict[str, Any]:
    told = {
        "context_length": 128,
        "block_count": shape.layers,
        "embedding_length": shape.hidden,
        "feed_forward_length": 2 * shape.intermediate,
        "expert_feed_forward_length": shape.intermediate,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 10000.0,
        "expert_count": shape.num_experts,
        "expert_used_count": ACTIVATED,
    }
    return {"general.name": "tiny"} | {f"{architecture}.{key}": value for key, value in told.items()} | tokenizer()


def tokenizer() -> dict[str, Any]:
    """A byte-pair vocabulary with one merge."""
    tokens = ["<unk>", "<s>", "</s>", "ab", *(chr(code) for code in range(33, 33 + VOCABULARY - 4))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3, *[1] * (VOCABULARY - 3)],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


class _Maker:
    """Adds random tensors to a file's content."""

    def __init__(self, content: Content, types: Types, seed: int) -> None:
        self._content, self._types, self._rng = content, types, np.random.default_rng(seed)

    def __call__(self, name: str, *shape: int) -> None:
        kind = self._types(name) if len(shape) > 1 else Type.F32
        values = blocks(self._rng, shape, kind)
        self._content.tensors[name] = (kind, values + 1 if name.endswith("norm.weight") else values)

    def rest(self, shape: Shape, head_dim: int, biased: bool) -> None:
        """Everything but the feed-forward part."""
        self.ends(shape)
        for layer in range(shape.layers):
            for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
                self(f"blk.{layer}.attn_{name}.weight", heads * head_dim, shape.hidden)
                if biased:
                    self(f"blk.{layer}.attn_{name}.bias", heads * head_dim)
            self(f"blk.{layer}.attn_output.weight", shape.hidden, HEADS * head_dim)
            self(f"blk.{layer}.attn_norm.weight", shape.hidden)
            self(f"blk.{layer}.ffn_norm.weight", shape.hidden)
            self(f"blk.{layer}.ffn_gate_inp.weight", shape.num_experts, shape.hidden)

    def ends(self, shape: Shape) -> None:
        """What comes before and after the layers."""
        self("token_embd.weight", VOCABULARY, shape.hidden)
        self("output_norm.weight", shape.hidden)
        if not shape.tied:
            self("output.weight", VOCABULARY, shape.hidden)

    def shared(self, layer: int, shape: Shape) -> None:
        """The shared expert, and the gate before it, which is a vector."""
        self(f"blk.{layer}.ffn_gate_inp_shexp.weight", shape.hidden)
        for part in ("gate", "up"):
            self(f"blk.{layer}.ffn_{part}_shexp.weight", shape.shared, shape.hidden)
        self(f"blk.{layer}.ffn_down_shexp.weight", shape.hidden, shape.shared)

    def experts(self, layer: int, shape: Shape, apart: bool = False) -> None:
        """The routed experts, stacked, or one tensor each."""
        for part in ("gate", "up", "down"):
            sizes = (shape.hidden, shape.intermediate) if part == "down" else (shape.intermediate, shape.hidden)
            self(f"blk.{layer}.ffn_{part}_exps.weight", shape.num_experts, *sizes)
            if apart:
                kind, values = self._content.tensors.pop(f"blk.{layer}.ffn_{part}_exps.weight")
                for expert, own in enumerate(values):
                    self._content.tensors[f"blk.{layer}.ffn_{part}.{expert}.weight"] = (kind, own)
