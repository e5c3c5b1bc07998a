"""How fast prefetches go over a plain memory link while the main thread launches small kernels, beside a bare copy."""

import ctypes
import threading
import time
from typing import Any

import torch
from transformers import MixtralConfig, MixtralForCausalLM

import finemoe

from .revisions import are_resident, memory_of, post

_LAYERS, _EXPERTS = 6, 8
_KERNELS = 20  # between two looks at whether all has arrived
_PATIENCE_S = 60


class Measured:
    """Variants "prefetches", "bare copy", and "bare copy beside", which shows what the kernels take from any copy on a machine.

    Half of a model's experts are prefetched at a time, in turn the lower and the upper half of every layer, so that slots are
    evicted and written anew as they are while a model runs.

    Args:
        hidden_size, intermediate_size: of the experts, in float32.
    """

    expected = None

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        sizes = {"hidden_size": hidden_size, "intermediate_size": intermediate_size, "num_hidden_layers": _LAYERS}
        heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 64, "num_local_experts": _EXPERTS}
        model = MixtralForCausalLM(MixtralConfig(**sizes, **heads)).eval()
        self._engine = finemoe.offload(model, 0.5, "on-demand")
        self._iteration = 0
        self._bytes = self._engine.expert_memory_bytes
        self._small = torch.zeros(64)
        self._record, self._slot = (torch.zeros(self._bytes, dtype=torch.uint8) for _ in range(2))
        self._copies = {"prefetches": self._prefetch, "bare copy": self._copy, "bare copy beside": self._copy_beside}
        for variant in self._copies:
            self.measure(variant)

    def measure(self, variant: str) -> dict[str, Any]:
        """Bytes a second."""
        begin_s = time.perf_counter()
        self._copies[variant]()
        return {"values": {variant: self._bytes / (time.perf_counter() - begin_s)}, "tokens": None}

    def _copy(self) -> None:
        size = self._bytes // (_LAYERS * _EXPERTS // 2)
        for source, sink in zip(self._record.split(size), self._slot.split(size), strict=True):
            ctypes.memmove(sink.data_ptr(), source.data_ptr(), size)

    def _copy_beside(self) -> None:
        thread = threading.Thread(target=self._copy)
        thread.start()
        while thread.is_alive():
            self._launch_kernels()
        thread.join()

    def _prefetch(self) -> None:
        self._iteration += 1
        memory = memory_of(self._engine)
        begin = self._iteration % 2 * _EXPERTS // 2
        wanted = range(begin, begin + _EXPERTS // 2)
        memory.start_iteration(self._iteration)
        post(memory, self._iteration, range(_LAYERS), wanted, _EXPERTS)
        latest_s = time.perf_counter() + _PATIENCE_S
        while not are_resident(memory, range(_LAYERS), wanted):
            assert time.perf_counter() < latest_s, f"prefetches have not arrived in {_PATIENCE_S} s"
            self._launch_kernels()

    def _launch_kernels(self) -> None:
        for _ in range(_KERNELS):
            torch.add(self._small, 1.0, out=self._small)

    def close(self) -> None:
        self._engine.close()
