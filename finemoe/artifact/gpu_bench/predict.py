"""Predictions by the simulator: before a measurement, from what is expected of a card, and after it, from micro-measurements.

Neither needs the device.
"""

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from finemoe.artifact.gpu_bench.calibration import Calibration, link_bytes_per_s, write_testbed
from finemoe.artifact.gpu_bench.expected import Expected
from finemoe.artifact.gpu_bench.routing import routing_of
from finemoe.artifact.gpu_bench.settings import Settings, Target, target_of
from finemoe.artifact.gpu_bench.software import RESIDENT
from finemoe.artifact.gpu_bench.subjects import size_of_target
from finemoe.artifact.gpu_bench.systems import requests_of
from finemoe.artifact.machines.foretold import foretold_path, write_foretold
from finemoe.artifact.machines.measured import Measured
from finemoe.artifact.machines.rows import write_table
from finemoe.artifact.machines.schema import Foretold, Predictions
from finemoe.errors import FinemoeError
from finemoe.policies import make_policy
from finemoe.report import Report, RequestReport
from finemoe.simulation.replay import replay_setup, sweep
from finemoe.simulation.testbed import Testbed
from finemoe.traces import RoutingTrace

_SOURCE = "measured by finemoe.artifact.gpu_bench: tables copies, kernels and software beside this file"


def foretell(card: str, settings: Settings, folder: Path, expected: Expected | None = None) -> list[Foretold]:
    """Predict every policy at every memory size on a card without measurements, and write `folder`/predictions-before-CARD.csv.

    Args:
        card: a name in data/hardware.
        settings: the settings of the measurement.
        folder: folder for the predictions; recorded routing is also looked up here, in addition to the settings' own folder.
        expected: the constants to use; None loads the shipped ones.
    Raises:
        FinemoeError: there is no such card, or the folder already contains its predictions.
    """
    expected = expected or Expected.load()
    Testbed.load(card)  # fails early for an unknown card, before routing is recorded
    path = foretold_path(card, folder)
    if path.is_file():
        raise FinemoeError(
            f"{path}: already exists; predictions made before a measurement are never replaced; choose another folder"
        )
    rows = [
        row
        for target in settings.targets()
        for row in _foretold(card, target, routing_of(target, settings, folder / "traces"), settings, expected)
    ]
    write_foretold(rows, card, folder)
    return rows


def _foretold(card: str, target: Target, trace: RoutingTrace, settings: Settings, expected: Expected) -> Iterator[Foretold]:
    for policy in settings.policies:
        testbed = expected.testbed(card, policy)
        shares = [share for share in settings.expert_memories if _has_room(target, share, testbed)]
        for share, report in zip(shares, _served(target, trace, policy, shares, testbed, settings), strict=True):
            timed = report.requests[1:]
            hit_rate = sum(one.hits for one in timed) / sum(one.accesses for one in timed)
            link_use = _moved_bytes(timed) / _duration_s(timed) / testbed.link_bytes_per_s
            yield Foretold(testbed.title, target.name, policy, share, _tpot_s(timed), hit_rate, link_use)


def _has_room(target: Target, share: float, testbed: Testbed) -> bool:
    size = size_of_target(target)
    return size.resident_bytes + share * size.all_experts_bytes <= testbed.memory_bytes


def predict(folder: Path, traces: Path | None = None) -> list[Predictions]:
    """Predict every measured cell, using only micro-measurements of the same machine; writes `folder`/predictions.csv and a
    testbed for each model.

    Args:
        folder: folder with the tables of one machine.
        traces: a folder of recorded routing, in addition to the one used for the measurement.
    Raises:
        FinemoeError: nothing was measured there, or the micro-measurements are missing.
    """
    machine = Measured.load(folder)
    settings = settings_of(machine.facts, traces)
    rows = [row for target in _targets(settings) for row in _predicted(machine, target, settings)]
    write_table(rows, "predictions", folder)
    return rows


def _targets(settings: Settings) -> Iterator[Target]:
    """The measured models; a model whose folder no longer exists is skipped with a warning."""
    for name in settings.models:
        try:
            yield target_of(name)
        except FinemoeError as error:
            warnings.warn(f"{name!r} was measured, but cannot be predicted: {error}", stacklevel=2)


def settings_of(facts: dict[str, Any], traces: Path | None = None) -> Settings:
    """The settings used to measure a machine."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in facts["settings"].items()
    }
    return Settings(**values | ({} if traces is None else {"traces": str(traces)}))


def _predicted(machine: Measured, target: Target, settings: Settings) -> Iterator[Predictions]:
    mine = {name: table[table.model == target.name] for name, table in machine.tables.items() if "model" in table}
    copies, software = machine.tables["copies"], mine["software"]
    requests = mine["requests"][mine["requests"].policy.isin(set(software.policy))]
    if requests.empty or copies.empty or mine["kernels"].empty or RESIDENT not in set(software.policy):
        return
    calibration = Calibration(machine.title, machine.memory_bytes, size_of_target(target), copies, mine["kernels"], software)
    write_testbed(calibration.testbed(), machine.folder / f"testbed-{target.name}.yaml", _SOURCE)
    trace = routing_of(target, settings, machine.folder / "traces")
    for name, measured in requests.groupby("policy", sort=False):
        policy, shares = str(name), sorted(measured.expert_memory.unique())
        served = trace.split("served")
        setup = replay_setup(served, trace.split("history"), **_options(trace, settings))
        is_synchronous = make_policy(policy, setup, is_replay=True).is_synchronous
        testbeds = (calibration.testbed(policy, is_synchronous), calibration.ideal())
        predicted, limits = (_served(target, trace, policy, shares, one, settings) for one in testbeds)
        for share, report, limit in zip(shares, predicted, limits, strict=True):
            cell = measured[measured.expert_memory == share]
            yield _compared(cell, _tpot_s(report.requests[1:]), _tpot_s(limit.requests[1:]), copies)


def _served(
    target: Target, trace: RoutingTrace, policy: str, shares: list[float], testbed: Testbed, settings: Settings
) -> list[Report]:
    """Replay what is measured on a testbed: the warm-up request and the timed requests, with one cache per size."""
    history, served = trace.split("history"), trace.split("served")
    asked = requests_of(served, policy, settings)
    return sweep(asked, policy, shares, history=history, hardware=testbed, model=target.source, **_options(trace, settings))


def _options(trace: RoutingTrace, settings: Settings) -> dict[str, Any]:
    return {
        "prefetch_distance": min(settings.prefetch_distance, trace.num_layers),
        "store_capacity": settings.store_capacity,
        "seed": settings.seed,
    }


def _tpot_s(requests: Iterable[RequestReport]) -> float:
    """Mean seconds of all decode steps."""
    timed = list(requests)
    return sum(one.tpot_s * one.num_decode_steps for one in timed) / sum(one.num_decode_steps for one in timed)


def _duration_s(requests: Iterable[RequestReport]) -> float:
    return sum(one.ttft_s + one.tpot_s * one.num_decode_steps for one in requests)


def _moved_bytes(requests: Iterable[RequestReport]) -> int:
    return sum(one.prefetched_bytes + one.demand_bytes for one in requests)


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
