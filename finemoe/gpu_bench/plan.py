"""All parts of a measurement in the order of their worth, and what is computed from their tables."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import finemoe
from finemoe.files import atomic_path
from finemoe.gpu_bench import baseline, breakdown, copies, correctness, kernels, overhead, software, systems
from finemoe.gpu_bench.bench import Bench, Outcome, Part, Say
from finemoe.gpu_bench.calibration import Calibration, predictions, write_testbed
from finemoe.gpu_bench.machine import compute_device, host_memory_bytes, is_usable, machine_facts
from finemoe.gpu_bench.routing import routing_of
from finemoe.gpu_bench.settings import Settings, Target
from finemoe.gpu_bench.subjects import Subjects, size_of_target
from finemoe.measured import TABLES, Skipped, write_table

_MEASURED = ("cache", "gpu_bench", "maps", "policies", "runtime")  # folders whose code decides what comes out
_OF_MODELS = (kernels, overhead, software, systems, baseline)
_SOURCE = "measured by finemoe.gpu_bench: tables copies, kernels and software beside this file"


def parts(settings: Settings, subjects: Subjects, folder: Path) -> list[Part]:
    """Correctness first, then the link, then model after model (bringing one in takes minutes)."""
    of_models = [part for module in _OF_MODELS for part in module.parts(settings, subjects)]
    of_models += breakdown.parts(settings, subjects, folder)
    return [
        *correctness.parts(settings, subjects.device),
        *copies.parts(settings, subjects.device),
        *(part for target in settings.targets() for part in of_models if target.name in part.name.split()),
        *correctness.last_parts(settings, subjects.device),
    ]


def measure(settings: Settings, folder: Path, minutes: float | None, say: Say) -> Outcome:
    """Do what the time allows, and write the tables of all that was done so far; machine.json comes last, as the sign that they
    are whole."""
    device, facts = compute_device(), machine_facts()
    folder.mkdir(parents=True, exist_ok=True)
    bench, subjects = Bench(folder, _digest(settings, facts)), Subjects(settings, folder, device)
    try:
        outcome = bench.run(parts(settings, subjects, folder), minutes, say, lambda: is_usable(device))
    finally:
        subjects.close()
    rows = bench.rows()
    outcome = replace(outcome, failed=(*outcome.failed, *_differences(rows)))
    rows["skipped"] = [*outcome.skipped, *outcome.failed, *(Skipped("left", title, "no time yet") for title in outcome.left)]
    for name in TABLES:
        write_table(rows[name], name, folder)
    rows["predictions"] = list(_predictions(settings, folder, rows, facts["title"], device))
    write_table(rows["predictions"], "predictions", folder)
    with atomic_path(folder / "machine.json") as path:
        path.write_text(json.dumps(facts | {"settings": asdict(settings)}, indent=1) + "\n", encoding="utf-8")
    return outcome


def _differences(rows: dict[str, list[Any]]) -> Iterator[Skipped]:
    """Whatever did not give eager's bits, which nothing excuses; Transformers' own other implementations may differ."""
    for one in rows["correctness"]:
        if one.num_different_steps:
            reason = f"{one.num_different_steps} of {one.num_steps} steps differ from eager under {one.policy} ({one.dtype})"
            yield Skipped("correctness", one.model, reason)
    for policy, model in sorted({(one.variant, one.model) for one in rows["overhead"] if not one.is_equal}):
        if policy in overhead.OURS:
            yield Skipped("overhead", model, f"the last logits differ from eager's under {policy}")


def _digest(settings: Settings, facts: dict[str, Any]) -> str:
    """Of what makes measurements comparable: settings, machine, libraries, and the code that is measured."""
    content = [settings.digest(), facts["title"], facts["torch"], facts["transformers"], _code_digest()]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def _code_digest() -> str:
    package = Path(finemoe.__file__).parent
    files = [path for folder in _MEASURED for path in sorted((package / folder).rglob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def _predictions(settings: Settings, folder: Path, rows: dict[str, list[Any]], title: str, device: torch.device) -> Iterator[Any]:
    tables = {name: _frame(name, some) for name, some in rows.items()}
    for target in settings.targets():
        mine = {name: table[table.model == target.name] for name, table in tables.items() if "model" in table}
        requests, needed = mine["requests"], set(mine["software"].policy)
        requests = requests[requests.policy.isin(needed)]
        if requests.empty or tables["copies"].empty or mine["kernels"].empty or software.RESIDENT not in needed:
            continue
        calibration = _calibration(target, title, device, tables["copies"], mine)
        write_testbed(calibration.testbed(), folder / f"testbed-{target.name}.yaml", _SOURCE)
        trace = routing_of(target, settings, folder / "traces")
        yield from predictions(target, trace, calibration, requests, tables["copies"], settings)


def _calibration(
    target: Target, title: str, device: torch.device, copied: pd.DataFrame, mine: dict[str, pd.DataFrame]
) -> Calibration:
    is_cuda = device.type == "cuda"
    memory_bytes = torch.cuda.get_device_properties(device).total_memory if is_cuda else host_memory_bytes()
    return Calibration(title, memory_bytes, size_of_target(target), copied, mine["kernels"], mine["software"])


def _frame(name: str, rows: list[Any]) -> pd.DataFrame:
    return pd.DataFrame([vars(row) for row in rows], columns=[field.name for field in fields(TABLES[name])])
