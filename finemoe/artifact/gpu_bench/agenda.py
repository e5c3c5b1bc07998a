"""All parts of a measurement in order of importance, and the tables computed from their results."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import finemoe
from finemoe.artifact.gpu_bench import (
    arenas,
    baseline,
    breakdown,
    chunks,
    copies,
    correctness,
    hotspots,
    kernels,
    launches,
    overhead,
    software,
    systems,
)
from finemoe.artifact.gpu_bench.alarm import Alarm
from finemoe.artifact.gpu_bench.bench import Bench, Outcome, Part, Say
from finemoe.artifact.gpu_bench.calls import Calls
from finemoe.artifact.gpu_bench.machine import compute_device, fix_attention, host_memory_bytes, is_usable, machine_facts
from finemoe.artifact.gpu_bench.predict import predict
from finemoe.artifact.gpu_bench.settings import Settings
from finemoe.artifact.gpu_bench.subjects import Subjects
from finemoe.artifact.machines.measured import Measured
from finemoe.artifact.machines.rows import write_table
from finemoe.artifact.machines.schema import TABLES, Skipped
from finemoe.errors import FinemoeError
from finemoe.files import atomic_path

# Code that affects the measurements.
_MEASURED = (
    "artifact/gpu_bench",
    "artifact/pipeline/timing.py",
    "cache",
    "compiling.py",
    "maps",
    "models",
    "policies",
    "runtime",
)
_OF_MODELS = (kernels, overhead, software, systems, chunks, baseline, launches, hotspots)
_ADDED_UP = ("models", "policies", "expert_memories", "checked_models")  # settings combined over several calls
_NOT_OF_THE_MACHINE = ("groups", "host_memory_bytes", "traces")


def parts(settings: Settings, subjects: Subjects, folder: Path) -> list[Part]:
    """Correctness first, then the link, then one model after the other, because bringing in a model takes minutes."""
    of_models = [part for module in _OF_MODELS for part in module.parts(settings, subjects)]
    of_models += breakdown.parts(settings, subjects, folder)
    return [
        *correctness.parts(settings, subjects.device),
        *arenas.parts(settings, subjects.device),
        *copies.parts(settings, subjects.device),
        *(part for target in settings.targets() for part in of_models if target.name in part.name.split()),
        *correctness.last_parts(settings, subjects.device),
    ]


def chosen(found: list[Part], groups: Sequence[str]) -> list[Part]:
    """The parts that these groups name, in their order; all parts if `groups` is empty.

    Args:
        groups: each "GROUP", or "GROUP:WORD:..." for the parts whose names contain all of these words.
    Raises:
        FinemoeError: a group matches no part.
    """
    picked: dict[str, Part] = {}
    for text in groups:
        group, *words = text.split(":")
        matching = {part.title: part for part in found if part.group == group and set(words) <= set(part.name.split())}
        if not matching:
            known = dict.fromkeys(part.group for part in found)
            raise FinemoeError(
                f"no part is called {text!r}; groups: {', '.join(known)}; words: models, policies, shares of memory"
            )
        picked |= {title: part for title, part in matching.items() if title not in picked}
    return list(picked.values()) if groups else found


def measure(
    settings: Settings,
    folder: Path,
    minutes: float | None,
    say: Say,
    alarm: Alarm | None = None,
    predicts: bool = True,
    again: bool = False,
) -> Outcome:
    """Measure as many parts as the time allows, and write the tables of everything measured so far. machine.json and empty tables
    are written first, so that the folder is readable even if this call dies.

    Args:
        settings: what to measure.
        folder: folder for the tables.
        minutes: start no part that is expected to end later than this.
        say: called with progress messages.
        alarm: ends parts that take too long, and keeps a deadline.
        predicts: whether to run the simulator at the end; `finemoe.artifact.gpu_bench.predict` can do so later.
        again: whether to repeat what earlier calls completed.
    """
    fix_attention()
    alarm, device, facts = alarm or Alarm(), compute_device(), machine_facts()
    digest = _digest(settings, facts)
    _require_same(folder, digest)
    facts["digest"] = digest
    subjects = Subjects(settings, folder, device)
    wanted = chosen(parts(settings, subjects, folder), settings.groups)
    calls = Calls(folder, digest, _code_digest())
    _write_facts(folder, facts, settings, calls)
    _write_tables(folder, calls)
    with calls.stacks_path.open("w") as stacks:
        alarm.write_to(stacks)
        try:
            outcome = Bench(folder, calls, say, alarm, minutes, lambda: is_usable(device)).run(wanted, again)
            outcome.failed += _differences(calls.rows())
            _write_tables(folder, calls)
            _write_facts(folder, facts | {"host_memory_after_bytes": host_memory_bytes()}, settings, calls)
        finally:
            if alarm.usable_s > 0:  # otherwise the end of the process frees the memory
                subjects.close()
            alarm.off()
            calls.stacks_path.unlink()  # nothing hung
    if predicts:
        predict(folder, None if settings.traces is None else Path(settings.traces))
    return outcome


def _require_same(folder: Path, digest: str) -> None:
    """Refuse a folder that contains different measurements.

    Raises:
        FinemoeError: its tables are from other settings, other libraries or another machine.
    """
    path = folder / "machine.json"
    if path.is_file() and Measured.load(folder).facts.get("digest") != digest:
        raise FinemoeError(
            f"{folder}: contains measurements with other settings or libraries, or of another machine; choose another folder"
        )


def _write_tables(folder: Path, calls: Calls) -> None:
    rows = calls.rows()
    rows["skipped"] = [*calls.missing(), *_differences(rows)]
    for name in TABLES:  # includes predictions: those made before are of outdated tables
        write_table(rows[name], name, folder)


def _write_facts(folder: Path, facts: dict[str, Any], settings: Settings, calls: Calls) -> None:
    """Write the machine, the settings of all calls, and the calls themselves."""
    path = folder / "machine.json"
    merged = {name: value for name, value in asdict(settings).items() if name not in _NOT_OF_THE_MACHINE}
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))["settings"]
        merged |= {name: list(dict.fromkeys((*before.get(name, ()), *merged[name]))) for name in _ADDED_UP}
    with atomic_path(path) as temporary:
        text = json.dumps(facts | {"settings": merged, "calls": calls.summaries()}, indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")


def _differences(rows: dict[str, list[Any]]) -> Iterator[Skipped]:
    """Every result that is not bit-equal to eager. Transformers' other implementations are exempt."""
    for one in rows["correctness"]:
        if one.num_different_steps:
            reason = f"{one.num_different_steps} of {one.num_steps} steps differ from eager under {one.policy} ({one.dtype})"
            yield Skipped("correctness", one.model, reason)
    for policy, model in sorted({(one.variant, one.model) for one in rows["overhead"] if not one.is_equal}):
        if policy in overhead.OURS:
            yield Skipped("overhead", model, f"the last logits differ from eager's under {policy}")


def _digest(settings: Settings, facts: dict[str, Any]) -> str:
    """Digest of what makes measurements comparable: settings, machine and libraries. Each call also records its code."""
    content = [settings.digest(), *(facts[name] for name in ("title", "torch", "transformers", "attention", "is_compiled"))]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def _code_digest() -> str:
    package = Path(finemoe.__file__).parent
    places = [package / name for name in _MEASURED]
    files = [path for place in places for path in (sorted(place.rglob("*.py")) if place.is_dir() else [place])]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
