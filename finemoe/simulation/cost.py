"""Duration of a model's parts on a testbed: a roofline per layer, from the model's configuration alone (DESIGN 6).

A part takes the longer of its arithmetic and of reading its weights (and keys and values), plus the framework's overhead.
Non-expert weights are on the first device. Within a layer, only loads overlap with anything.
"""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from finemoe.cache.capacity import slots_per_device
from finemoe.errors import FinemoeError
from finemoe.models.published import config_source
from finemoe.paths import MODEL_CONFIGS
from finemoe.simulation.published_sizes import known_size
from finemoe.simulation.testbed import Testbed
from finemoe.suggestions import suggestion

PUBLISHED = {"mixtral-mini": "mixtral-8x7b", "qwen-mini": "qwen1.5-moe-a2.7b", "phi-mini": "phi-3.5-moe"}  # miniature: original
_BYTES = 2  # bf16


@dataclass(frozen=True)
class ModelSize:
    """A model's sizes, with parameters of two bytes except for packed experts.

    Packed experts are stored, transferred and held in slots in packed form. Unpacking them before a layer computes is not
    modelled: it takes no time here, and the buffer for unpacked experts takes no memory.

    Attributes:
        name; num_layers, num_experts, top_k: L, J, K; hidden_size: h.
        expert_params: parameters of one routed expert. layer_params: of a decoder layer without its routed experts (attention,
            norms, router, shared experts; the mean over all layers, including dense ones). head_params: of the output layer.
        total_params: of the whole model.
        attention_width: query heads x head size. kv_bytes: keys and values of one token in one layer.
        packed_bytes: bytes of one packed routed expert, the largest if layers differ; None if experts are in bf16.
    """

    name: str
    num_layers: int
    num_experts: int
    top_k: int
    hidden_size: int
    expert_params: int
    layer_params: int
    head_params: int
    total_params: int
    attention_width: int
    kv_bytes: int
    packed_bytes: int | None = None

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert as it is stored, transferred and held in a slot."""
        return self.unpacked_bytes if self.packed_bytes is None else self.packed_bytes

    @property
    def unpacked_bytes(self) -> int:
        """Bytes of one expert in the form that a layer computes with."""
        return _BYTES * self.expert_params

    @property
    def all_experts_bytes(self) -> int:
        return self.num_layers * self.num_experts * self.expert_bytes

    @property
    def total_bytes(self) -> int:
        return self.resident_bytes + self.all_experts_bytes

    @property
    def resident_bytes(self) -> int:
        """Bytes of all weights except the routed experts, in bf16."""
        return _BYTES * (self.total_params - self.num_layers * self.num_experts * self.expert_params)

    def in_bits(self, bits: float) -> "ModelSize":
        """The sizes with experts of so many bits a weight.

        Raises:
            FinemoeError: no weight has so many bits.
        """
        if not 0 < bits <= 64:
            raise FinemoeError(f"expert_bits is {bits:g}; a weight takes more than 0 bits and at most 64")
        return replace(self, packed_bytes=max(1, round(self.expert_params * bits / 8)))

    @classmethod
    def from_config(cls, source: Any, name: str = "") -> "ModelSize":
        """Sizes from a configuration, which may be anything that `Geometry.from_config` accepts."""
        from finemoe.models.geometry import Geometry, config_of
        from finemoe.models.packed_sizes import PLAIN

        geometry, text = Geometry.from_config(source), config_of(source).get_text_config()
        head = text.vocab_size * text.hidden_size
        embeddings = head if text.tie_word_embeddings else 2 * head
        rest = geometry.total_params - geometry.num_layers * geometry.num_experts * geometry.expert_params - embeddings
        attention_width, kv_width = _attention_widths(text)
        if latent := getattr(text, "kv_lora_rank", None):  # multi-head latent attention stores one vector for all heads
            kv_width = latent + text.qk_rope_head_dim
        return cls(
            name=name or geometry.name,
            num_layers=geometry.num_layers,
            num_experts=geometry.num_experts,
            top_k=geometry.experts_per_token,
            hidden_size=geometry.hidden_size,
            expert_params=geometry.expert_params,
            layer_params=rest // text.num_hidden_layers,
            head_params=head,
            total_params=geometry.total_params,
            attention_width=attention_width,
            kv_bytes=_BYTES * kv_width,
            packed_bytes=None if geometry.expert_format == PLAIN else geometry.expert_bytes,
        )

    @classmethod
    def known(cls, num_layers: int, num_experts: int, top_k: int) -> "ModelSize":
        """The published model of these sizes whose configuration is included in the project.

        Raises:
            FinemoeError: there is none.
        """
        sizes = [size_named(path.stem) for path in sorted(MODEL_CONFIGS.glob("*.json"))]
        found = [size for size in sizes if (size.num_layers, size.num_experts, size.top_k) == (num_layers, num_experts, top_k)]
        if found:  # of several formats, the smallest: a model is published packed, and unpacked for comparison
            return min(found, key=lambda size: size.expert_bytes)
        raise FinemoeError(
            f"no published configuration of {num_layers} layers x {num_experts} experts / {top_k} is included; "
            "name the model: model='config.json', a folder or a hub id"
        )


def _attention_widths(text: Any) -> tuple[int, int]:
    """Widths of queries, and of keys and values, over all heads: means over the layers, since heads may differ (Gemma 4), and
    layers of linear attention have neither (Qwen3-Next)."""
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    layers = [layer for layer, kind in zip(text.per_layer_config, kinds, strict=True) if kind != "linear_attention"]
    sizes = [getattr(layer, "head_dim", None) or text.hidden_size // layer.num_attention_heads for layer in layers]
    queries = sum(layer.num_attention_heads * size for layer, size in zip(layers, sizes, strict=True))
    keys = sum(layer.num_key_value_heads * size for layer, size in zip(layers, sizes, strict=True))
    return queries // len(kinds), 2 * keys // len(kinds)


@dataclass(frozen=True)
class CostModel:
    """Duration in seconds of a model's parts on a testbed."""

    size: ModelSize
    testbed: Testbed

    def cache_bytes(self, expert_memory: float | int | str) -> int:
        """Bytes of the expert caches of all devices."""
        size, devices = self.size, self.testbed.devices
        slots = slots_per_device(expert_memory, size.expert_bytes, size.num_layers * size.num_experts, devices)
        return slots * devices * size.expert_bytes

    def fullest_bytes(self, expert_memory: float | int | str) -> int:
        """Bytes on the first device: its share of the expert caches, and all other weights."""
        return self.cache_bytes(expert_memory) // self.testbed.devices + self.size.resident_bytes

    def fits(self, expert_memory: float | int | str) -> bool:
        """Whether caches of that size fit in addition to the other weights."""
        return self.fullest_bytes(expert_memory) <= self.testbed.memory_bytes

    def before_experts(self, num_rows: np.ndarray, context: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Attention, norms, router and shared experts of one layer, [n].

        Args:
            num_rows: [n] tokens computed together. context: [n] tokens attended to, summed over rows. kept: [n] tokens whose keys
                and values are read, each once.
        """
        flops = 2.0 * num_rows * self.size.layer_params + 4.0 * self.size.attention_width * context
        moved = _BYTES * self.size.layer_params + self.size.kv_bytes * kept
        return self.testbed.layer_overhead_s + self._roofline(flops, moved)

    def expert(self, num_tokens: np.ndarray) -> np.ndarray:
        """One routed expert for the tokens that selected it, [n]; its weights are read unpacked."""
        flops = 2.0 * num_tokens * self.size.expert_params
        return self.testbed.expert_overhead_s + self._roofline(flops, np.full(len(num_tokens), float(self.size.unpacked_bytes)))

    def exchange(self, num_rows: np.ndarray) -> np.ndarray:
        """Transfer of activations to the devices that hold a layer's experts and back, [n]; 0 on one device."""
        if self.testbed.devices == 1:
            return np.zeros(len(num_rows))
        moved = 2.0 * _BYTES * num_rows * self.size.hidden_size
        return self.testbed.interconnect_latency_s + moved / self.testbed.interconnect_bytes_per_s

    def head(self) -> float:
        """The output layer for one token; reading its weights takes longer than the arithmetic of a few tokens."""
        moved = np.array([float(_BYTES * self.size.head_params)])
        return float(self._roofline(np.array([2.0 * self.size.head_params]), moved)[0])

    def load(self) -> float:
        """Transfer of one expert over a device's link, in one copy."""
        return self.testbed.link_latency_s + self.size.expert_bytes / self.testbed.load_bytes_per_s

    def prefetch(self, chunk_bytes: int) -> float:
        """Transfer of one expert over a device's link, chunk by chunk; the last chunk counts as a full one."""
        num_chunks = -(-self.size.expert_bytes // chunk_bytes)
        each_s = self.testbed.link_latency_s + self.testbed.chunk_overhead_s
        return num_chunks * each_s + self.size.expert_bytes / self.testbed.load_bytes_per_s

    def search(self, read_bytes: np.ndarray) -> np.ndarray:
        """A policy's own work that reads the given bytes, [n]; 0 if it reads nothing."""
        return np.where(read_bytes > 0, self.testbed.search_overhead_s + read_bytes / self.testbed.search_bytes_per_s, 0.0)

    def _roofline(self, flops: np.ndarray, moved_bytes: np.ndarray) -> np.ndarray:
        times: np.ndarray = np.maximum(flops / self.testbed.flops_per_s, moved_bytes / self.testbed.memory_bytes_per_s)
        return times


@cache
def size_named(model: str) -> ModelSize:
    """The published model for a name: that of a miniature, or of a configuration in data/models/configs."""
    name = PUBLISHED.get(model, model)
    config = MODEL_CONFIGS / f"{name}.json"
    known = known_size(config)
    return ModelSize.from_config(config, name) if known is None else ModelSize(**known)


def size_of(model: "str | Path | ModelSize | None", num_layers: int, num_experts: int, top_k: int) -> ModelSize:
    """The sizes of the given model, or of the published one with these layers and experts; a ModelSize is returned unchanged.

    Raises:
        FinemoeError: the model has other layers or experts, or no such model is known.
    """
    if model is None:
        return ModelSize.known(num_layers, num_experts, top_k)
    if isinstance(model, ModelSize):
        return model
    size = model_size(model)
    found, expected = (size.num_layers, size.num_experts, size.top_k), (num_layers, num_experts, top_k)
    if found != expected:
        texts = ["{} layers x {} experts / {}".format(*one) for one in (found, expected)]
        raise FinemoeError(f"{model} has {texts[0]}, the trace {texts[1]}; name a model of the trace's sizes")
    return size


def model_size(model: str | Path) -> ModelSize:
    """The sizes of a model by its published name, a folder, a config.json or a hub id.

    Raises:
        FinemoeError: the model is unknown.
    """
    known = sorted({path.stem for path in MODEL_CONFIGS.glob("*.json")} | set(PUBLISHED))
    is_elsewhere = isinstance(model, Path) or "/" in str(model) or Path(model).exists()
    if str(model) not in known and not is_elsewhere:
        raise FinemoeError(f"unknown model {model!r}; {suggestion(model, known)}, or give a config.json, a folder or a hub id")
    if str(model) in known:
        return size_named(str(model))
    source = Path(config_source(str(model)))
    is_included = source.parent == MODEL_CONFIGS and source.suffix == ".json"
    return size_named(source.stem) if is_included else ModelSize.from_config(str(source), str(model))
