"""A testbed of the simulator made from micro-measurements alone, and what it predicts for what was measured."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from finemoe.errors import FinemoeError
from finemoe.files import atomic_path
from finemoe.gpu_bench.copies import PREFETCHED, QUEUED
from finemoe.gpu_bench.settings import Settings, Target
from finemoe.gpu_bench.software import RESIDENT
from finemoe.gpu_bench.systems import requests_of
from finemoe.measured import Predictions
from finemoe.policies import make_policy
from finemoe.report import Report
from finemoe.simulation.cost import ModelSize
from finemoe.simulation.replay import replay_setup, sweep
from finemoe.simulation.testbed import Testbed
from finemoe.simulation.timed import CHUNK_BYTES
from finemoe.traces import RoutingTrace

_BASE = "h200"  # for what one device never uses: the interconnect
_ENDLESS = 1e30


class Calibration:
    """One model on the machine that measured.

    Args:
        title: of the machine; memory_bytes: of its device. size: of the model.
        copies, kernels, software: the tables of those names; the latter two of this model alone.
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
        """The machine with what a policy's own work adds to a layer, and its search beside it (in line it is in the layer)."""
        size, mine = self._size, self._software.loc[policy].to_dict()
        link = link_bytes_per_s(self._copies)
        chunk_s = CHUNK_BYTES / prefetch_bytes_per_s(self._copies)
        one_s, one_kernel_s = self._one_s("seconds"), self._one_s("kernel_seconds")
        return replace(
            Testbed.load(_BASE),
            title=self._title,
            devices=1,
            memory_bytes=self._memory_bytes,
            flops_per_s=float((2.0 * size.expert_params * self._expert.index / self._expert.kernel_seconds).max()),
            memory_bytes_per_s=self._bytes_per_s,
            link_bytes_per_s=link,
            link_latency_s=max(0.0, chunk_s - CHUNK_BYTES / link),
            host_bytes_per_s=link,
            layer_overhead_s=max(0.0, float(mine["seconds_per_layer"]) - size.top_k * one_s - self._read_s()),
            expert_overhead_s=max(0.0, one_s - one_kernel_s),
            search_bytes_per_s=_ENDLESS,
            search_overhead_s=0.0 if is_synchronous else float(mine["gate_search_s"]),
        )

    def ideal(self) -> Testbed:
        """The machine with nothing but kernels and bytes: no host work, no latency, no search."""
        return replace(
            self.testbed(),
            link_latency_s=0.0,
            layer_overhead_s=max(0.0, self._layer_kernel_s - self._read_s()),
            expert_overhead_s=0.0,
            search_overhead_s=0.0,
        )

    def _one_s(self, column: str) -> float:
        """One expert, one token."""
        return float(self._expert[column].to_numpy()[self._expert.index == 1][0])

    def _read_s(self) -> float:
        """What the cost model counts apart in a measured layer: reading its weights, and its share of the output layer's."""
        size = self._size
        return 2.0 * (size.layer_params + size.head_params / size.num_layers) / self._bytes_per_s


def link_bytes_per_s(copies: pd.DataFrame) -> float:
    """The peak: the largest transfer, all at once."""
    return _largest_bytes_per_s(copies, QUEUED)


def prefetch_bytes_per_s(copies: pd.DataFrame) -> float:
    """In the engine's chunks: the largest transfer."""
    return _largest_bytes_per_s(copies, PREFETCHED)


def _largest_bytes_per_s(copies: pd.DataFrame, mode: str) -> float:
    some = copies[copies["mode"] == mode]
    if some.empty:
        raise FinemoeError(f"no copies were measured {mode!r}; begin in a new folder, this one was begun by another version")
    return float(some[some.transfer_bytes == some.transfer_bytes.max()].bytes_per_s.max())


def predictions(
    target: Target,
    trace: RoutingTrace,
    calibration: Calibration,
    requests: pd.DataFrame,
    copies: pd.DataFrame,
    settings: Settings,
) -> list[Predictions]:
    """For every policy and memory size measured: what the simulator says, and the limit.

    Args:
        trace: the recorded requests, history and served. requests: as measured, of this model; copies: of the machine.
    """
    history, served = trace.split("history"), trace.split("served")
    options: dict[str, Any] = {
        "prefetch_distance": min(settings.prefetch_distance, trace.num_layers),
        "store_capacity": settings.store_capacity,
        "seed": settings.seed,
    }
    setup = replay_setup(served, history, **options)
    rows = []
    for name, measured in requests.groupby("policy", sort=False):
        policy, shares = str(name), sorted(measured.expert_memory.unique())
        is_synchronous = make_policy(policy, setup, is_replay=True).is_synchronous
        asked = requests_of(served, policy, settings)
        testbeds = (calibration.testbed(policy, is_synchronous), calibration.ideal())
        predicted, limits = (
            sweep(asked, policy, shares, history=history, hardware=one, model=target.source, **options) for one in testbeds
        )
        for share, said, limit in zip(shares, predicted, limits, strict=True):
            rows.append(_compared(measured[measured.expert_memory == share], _tpot_s(said), _tpot_s(limit), copies))
    return rows


def _tpot_s(report: Report) -> float:
    """Of all requests but the first, which warms up."""
    timed = report.requests[1:]
    return sum(one.tpot_s * one.num_decode_steps for one in timed) / sum(one.num_decode_steps for one in timed)


def _compared(cell: pd.DataFrame, predicted_s: float, limit_s: float, copies: pd.DataFrame) -> Predictions:
    decode_s = float((cell.tpot_s * cell.num_decode_steps).sum())
    measured_s = decode_s / float(cell.num_decode_steps.sum())
    moved = float((cell.prefetched_bytes + cell.demand_bytes).sum())
    return Predictions(
        model=str(cell.model.iloc[0]),
        policy=str(cell.policy.iloc[0]),
        expert_memory=float(cell.expert_memory.iloc[0]),
        measured_tpot_s=measured_s,
        predicted_tpot_s=predicted_s,
        error=predicted_s / measured_s - 1,
        limit_tpot_s=limit_s,
        over_limit=measured_s / limit_s,
        link_use=moved / (decode_s + float(cell.ttft_s.sum())) / link_bytes_per_s(copies),
    )


def write_testbed(testbed: Testbed, path: Path, source: str) -> None:
    """As a profile that `finemoe replay --hardware PATH` reads."""
    content: dict[str, Any] = {
        name: value if name in ("title", "devices") else {"value": float(f"{value:.6g}"), "source": source}
        for name, value in asdict(testbed).items()
    }
    content["devices"] = {"value": testbed.devices, "source": source}
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
