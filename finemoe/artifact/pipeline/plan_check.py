"""Check plans against the live engine: predicted tokens per second and memory, and what the commands they recommend really give.

`python -m finemoe.artifact.pipeline.plan_check` plans the miniatures on this machine over paced links, with several memories, and
measures every planned choice, round by round. A plan knows recorded routing of other requests than those measured. Measured
caches start full of the experts that those other requests used most, and serve two of them first, as the plan assumes. A choice
that other work delayed is measured once more. What the table has is kept, so a run may be stopped and continued.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

import finemoe
from finemoe.advice.this_machine import measure_testbed
from finemoe.artifact.pipeline.advice_check import waited_s
from finemoe.artifact.pipeline.serving import serve
from finemoe.artifact.plotting import machine, save_table
from finemoe.artifact.prompts import load_prompts
from finemoe.models.shipped import NAMES
from finemoe.paths import DATA, RESULTS
from finemoe.planning.calibration import remembered
from finemoe.planning.choices import Choice
from finemoe.planning.loaded import LoadedModel, loaded_models
from finemoe.planning.place import MOST_RESERVE_BYTES, RESERVE_SHARE
from finemoe.planning.plan import Plan, plan
from finemoe.planning.prediction import Prepared
from finemoe.planning.routing import recorded_routing
from finemoe.runtime.link import make_link
from finemoe.runtime.loading import load_model, load_tokenizer
from finemoe.simulation.testbed import Testbed
from finemoe.traces import RoutingTrace

POLICIES = ("on-demand", "finemoe-plus")
TIME_BAR, MEMORY_BAR = 0.15, 0.03  # what predictions may differ from measurements, relative
_CELL = ["model", "load_ms", "share"]
_NUM_KNOWN, _MOST_DELAYED = 2, 0.12  # requests served first; share of the time that threads may wait for a core
_DATASET, _CONTEXT, _DTYPE = "questions", 128, "bfloat16"  # of the miniatures as `finemoe run` loads them


@dataclass(frozen=True)
class Cell:
    """One plan to check.

    Attributes:
        name: of the miniature. load_ms: time of an expert on the link. share: of the experts that the memory holds.
    """

    name: str
    load_ms: float
    share: float

    @cached_property
    def model(self) -> LoadedModel:
        """Its sizes."""
        return loaded_models(self.name, str(finemoe.models.shipped.resolve(self.name)), is_cuda=False)[0]

    @property
    def link(self) -> str:
        """The paced link."""
        return f"paced:{self.model.slot_bytes / (self.load_ms / 1e3):.0f}B/s"

    @property
    def memory_bytes(self) -> int:
        """Device memory in which a plan finds room for that share of the experts."""
        model = self.model
        experts = model.expert_memory_bytes(round(self.share * model.num_experts))
        needed = experts + model.other_bytes + model.kv_bytes * _CONTEXT
        return int(min(needed / (1 - RESERVE_SHARE), needed + MOST_RESERVE_BYTES)) + 1


def planned(cell: Cell, testbed: Testbed, trace: RoutingTrace) -> Plan:
    """The plan of a cell."""
    return plan(
        cell.name, cell.memory_bytes, testbed, context=_CONTEXT, trace=trace, link=cell.link, formats=(), host_memory="1TiB"
    )


def measured(
    cell: Cell, choice: Choice, trace: RoutingTrace, known: Sequence[str], prompts: Sequence[str], num_tokens: int
) -> dict[str, Any]:
    """Run a choice after the `known` prompts: mean time of a decode step over the requests, the share of the time that threads
    waited for a core, and memory in bytes."""
    prepared = Prepared.of(recorded_routing(trace, cell.name))
    history = None if choice.policy == "on-demand" else prepared.routing.history
    held = [divmod(int(flat), trace.num_experts) for flat in prepared.held]
    tokenizer = load_tokenizer(cell.name)
    model, engine = finemoe.load(cell.name, choice.expert_memory_bytes, choice.policy, eviction=choice.eviction, history=history)
    with engine:
        memory = engine.memories.memories[0]
        memory.preload(held, is_counted=False)
        serve(model, tokenizer, known, num_tokens, engine)  # over the machine's own link
        memory.connect(make_link(memory.pool.device, cell.link))
        before_s = waited_s()
        served = serve(model, tokenizer, list(prompts), num_tokens, engine)
        steps = np.array([one.report["tpot_s"] for one in served])
        return {
            "measured_tpot_s": float(steps.mean()),
            "measured_hit_rate": float(np.mean([one.report["hit_rate"] for one in served])),
            "delayed": (waited_s() - before_s) / sum(one.seconds for one in served),
            **_memory(model, engine, tokenizer, prompts[0], cell.model, choice),
        }


def _memory(model: Any, engine: Any, tokenizer: Any, prompt: str, sizes: LoadedModel, choice: Choice) -> dict[str, int]:
    """Bytes that the engine's slots, all other parameters, and the keys and values of one request take, and the same planned."""
    import torch

    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    kept = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in model.parameters()}
    others = sum(storages.values())  # experts' parameters have no memory of their own
    tokens = inputs["input_ids"].shape[1]
    return {
        "measured_bytes": engine.expert_memory_bytes + others + kept,
        "planned_bytes": choice.expert_memory_bytes + sizes.other_bytes + sizes.kv_bytes * tokens,
    }


def check_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Median over rounds of every cell, and how far the plan is from it.

    Returns:
        Rows (model, load_ms, share, policy, planned_tokens_per_s, measured_tokens_per_s, error, memory_error, is_within).
    """
    by = [*_CELL, "policy"]
    found = table.groupby(by, sort=False)[["planned_tpot_s", "measured_tpot_s", "planned_bytes", "measured_bytes"]].median()
    rows = found.assign(
        planned_tokens_per_s=1 / found.planned_tpot_s,
        measured_tokens_per_s=1 / found.measured_tpot_s,
        error=found.measured_tpot_s / found.planned_tpot_s - 1,
        memory_error=found.planned_bytes / found.measured_bytes - 1,
    )
    is_within = (rows.error.abs() <= TIME_BAR) & (rows.memory_error.abs() <= MEMORY_BAR)
    columns = ["planned_tokens_per_s", "measured_tokens_per_s", "error", "memory_error"]
    return rows.assign(is_within=is_within)[[*columns, "is_within"]].reset_index()


def recorded(name: str, folder: Path, num_requests: int, num_tokens: int) -> RoutingTrace:
    """Routing of requests of the history, recorded once and kept in a folder."""
    path = folder / f"{name}-{num_requests}x{num_tokens}.trace"
    if path.is_file():
        return RoutingTrace.load(path)
    model, tokenizer = load_model(name, _DTYPE)
    trace = finemoe.record(model, _prompts("history", num_requests), tokenizer=tokenizer, max_new_tokens=num_tokens)
    folder.mkdir(parents=True, exist_ok=True)
    trace.save(path)
    return trace


def _prompts(split: str, count: int) -> list[str]:
    return list(load_prompts(_DATASET).to_pandas().query("split == @split").head(count)["prompt"])


def _least_delayed(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The measurement, or, if other work delayed it, the less delayed of two."""
    first = measure()
    return first if first["delayed"] <= _MOST_DELAYED else min(first, measure(), key=lambda one: one["delayed"])


def write_table(
    output: Annotated[Path, typer.Option()] = DATA / "reference" / "plan_check_measured.csv",
    folder: Annotated[Path, typer.Option(help="where recorded routing is kept")] = RESULTS / "plan_check",
    models: Annotated[list[str], typer.Option("--model")] = list(NAMES),  # noqa: B006
    load_ms: Annotated[list[float], typer.Option(help="time of an expert on the link, in ms")] = [1.0, 4.0],  # noqa: B006
    shares: Annotated[list[float], typer.Option("--share", help="of the experts, in memory")] = [0.25, 0.5],  # noqa: B006
    num_recorded: Annotated[int, typer.Option(help="requests whose routing is known to plans")] = 40,
    num_served: Annotated[int, typer.Option(help="other requests, which are measured")] = 6,
    num_tokens: Annotated[int, typer.Option(help="tokens of each request", min=3)] = 12,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Plan and measure every cell in every round, and write the rounds as CSV."""
    prompts = _prompts("served", num_served)
    traces = {name: recorded(name, folder, num_recorded, num_tokens) for name in models}
    known = _prompts("history", _NUM_KNOWN)
    table = pd.read_csv(output) if output.exists() else pd.DataFrame(columns=[*_CELL, "round"])
    for number in range(rounds):
        cells = list(itertools.starmap(Cell, itertools.product(models, load_ms, shares)))
        missing = [cell for cell in cells if not _has(table, cell, number)]
        testbed = measure_testbed(3, _DTYPE).testbed if missing else None
        remembered.cache_clear()  # every round measures the machine anew
        for cell in missing:
            assert testbed is not None
            rows = _rows(cell, planned(cell, testbed, traces[cell.name]), traces[cell.name], known, prompts, num_tokens)
            table = pd.concat([table, pd.DataFrame(rows).assign(round=number, machine=machine())], ignore_index=True)
            save_table(table, output)
    typer.echo(check_rows(table).to_string(index=False))


def _has(table: pd.DataFrame, cell: Cell, number: int) -> bool:
    key = {"model": cell.name, "load_ms": cell.load_ms, "share": cell.share, "round": number}
    return bool(len(table.merge(pd.DataFrame([key]), on=list(key))))


def _rows(
    cell: Cell, found: Plan, trace: RoutingTrace, known: Sequence[str], prompts: Sequence[str], num_tokens: int
) -> list[dict[str, Any]]:
    """Measure the choice of every policy."""
    rows = []
    for policy in POLICIES:
        choice = next(one for one in found.choices if one.policy == policy and one.eviction is None)
        plans = {"slots": choice.slots, "planned_tpot_s": choice.tpot_s[0], "planned_hit_rate": choice.hit_rate[0]}
        seen = _least_delayed(partial(measured, cell, choice, trace, known, prompts, num_tokens))
        key = {"model": cell.name, "load_ms": cell.load_ms, "share": cell.share, "policy": policy}
        rows.append(key | plans | seen | {"executor": "CPU, paced link"})
        typer.echo(f"{key} planned {1e3 * choice.tpot_s[0]:.1f} ms, measured {1e3 * seen['measured_tpot_s']:.1f} ms")
    return rows


if __name__ == "__main__":
    typer.run(write_table)
