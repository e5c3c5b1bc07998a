"""A testbed for the simulator, made from micro-measurements alone."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from finemoe.artifact.gpu_bench.software import RESIDENT
from finemoe.artifact.machines.schema import LAUNCHING, MAPPED, PREFETCHED
from finemoe.chunks import CHUNK_BYTES
from finemoe.errors import FinemoeError
from finemoe.files import write_text
from finemoe.simulation.cost import ModelSize
from finemoe.simulation.testbed import Testbed

_BASE = "h200"  # provides the interconnect, which a single device never uses
_ENDLESS = 1e30


class Calibration:
    """One model on the measured machine.

    Args:
        title: name of the machine.
        memory_bytes: memory of its device.
        size: size of the model.
        copies, kernels, software: the tables of these names; the latter two of this model only.
    """

    def __init__(
        self,
        title: str,
        memory_bytes: float,
        size: ModelSize,
        copies: pd.DataFrame,
        kernels: pd.DataFrame,
        software: pd.DataFrame,
    ) -> None:
        self._title, self._memory_bytes, self._size, self._copies = title, memory_bytes, size, copies
        self._software = software.set_index("policy")
        self._expert = kernels[kernels.part == "expert"].set_index("num_tokens")
        layers = kernels[(kernels.part == "layer") & (kernels.num_tokens == 1)].sort_values("context_tokens")
        self._layer_kernel_s = float(layers.kernel_seconds.iloc[0])
        self._bytes_per_s = size.expert_bytes / self._one_s("kernel_seconds")

    def testbed(self, policy: str = RESIDENT, is_synchronous: bool = False) -> Testbed:
        """The machine including what a policy's own work adds to a layer; an asynchronous search is added separately."""
        size, mine = self._size, self._software.loc[policy].to_dict()
        link, latency_s = link_bytes_per_s(self._copies), self._latency_s()
        one_s, one_kernel_s = self._one_s("seconds"), self._one_s("kernel_seconds")
        return replace(
            Testbed.load(_BASE),
            title=self._title,
            devices=1,
            memory_bytes=self._memory_bytes,
            flops_per_s=float((2.0 * size.expert_params * self._expert.index / self._expert.kernel_seconds).max()),
            memory_bytes_per_s=self._bytes_per_s,
            link_bytes_per_s=link,
            link_latency_s=latency_s,
            chunk_overhead_s=max(0.0, self._beyond_bytes_s(prefetch_bytes_per_s(self._copies)) - latency_s),
            host_bytes_per_s=link,
            layer_overhead_s=max(0.0, float(mine["seconds_per_layer"]) - size.top_k * one_s - self._read_s()),
            expert_overhead_s=max(0.0, one_s - one_kernel_s),
            search_bytes_per_s=_ENDLESS,
            search_overhead_s=0.0 if is_synchronous else float(mine["gate_search_s"]),
        )

    def ideal(self) -> Testbed:
        """An ideal version of the machine, with only kernels and bytes: no host work, no latency, no search."""
        return replace(
            self.testbed(),
            link_latency_s=0.0,
            chunk_overhead_s=0.0,
            layer_overhead_s=max(0.0, self._layer_kernel_s - self._read_s()),
            expert_overhead_s=0.0,
            search_overhead_s=0.0,
        )

    def _one_s(self, column: str) -> float:
        """Seconds of one expert for one token."""
        return float(self._expert[column].to_numpy()[self._expert.index == 1][0])

    def _latency_s(self) -> float:
        """How much longer one expert takes alone than its bytes at the link's peak, while inference launches kernels."""
        whole = self._copies[(self._copies.chunks_in_flight == 1) & (self._copies.main_thread == LAUNCHING)]
        record = whole[whole.chunk_bytes == whole.chunk_bytes.max()].iloc[0]
        return max(0.0, float(record.chunk_bytes / record.bytes_per_s - record.chunk_bytes / link_bytes_per_s(self._copies)))

    def _beyond_bytes_s(self, bytes_per_s: float) -> float:
        """How much longer one of the simulator's chunks takes at this rate than at the link's peak."""
        chunk_bytes = min(CHUNK_BYTES, self._size.expert_bytes)
        return chunk_bytes / bytes_per_s - chunk_bytes / link_bytes_per_s(self._copies)

    def _read_s(self) -> float:
        """Parts of a measured layer that the cost model counts separately: reading its weights, a share of the output layer."""
        size = self._size
        return 2.0 * (size.layer_params + size.head_params / size.num_layers) / self._bytes_per_s


def link_bytes_per_s(copies: pd.DataFrame) -> float:
    """The peak bandwidth: the best of all ways of copying."""
    copied = copies[copies["mode"] != MAPPED]
    if copied.empty:
        raise FinemoeError("no copies were measured, so the link's bandwidth is unknown; measure the group copies first")
    return float(copied.bytes_per_s.max())


def prefetch_bytes_per_s(copies: pd.DataFrame) -> float:
    """Bandwidth with the engine's own chunks, while inference launches kernels."""
    own = copies[(copies["mode"] == PREFETCHED) & (copies.main_thread == LAUNCHING)]
    if own.empty:
        raise FinemoeError(
            "no copies were measured 'as prefetched'; start in a new folder, because this one is from another version"
        )
    return float(own.bytes_per_s.max())


def write_testbed(testbed: Testbed, path: Path, source: str) -> None:
    """Write a profile that `finemoe replay --hardware PATH` reads."""
    content: dict[str, Any] = {
        name: value if name in ("title", "devices") else {"value": float(f"{value:.6g}"), "source": source}
        for name, value in asdict(testbed).items()
    }
    content["devices"] = {"value": testbed.devices, "source": source}
    write_text(path, yaml.safe_dump(content, sort_keys=False))
