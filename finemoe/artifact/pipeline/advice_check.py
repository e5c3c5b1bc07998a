"""Check advice against the live engine: measure every system at several sizes of expert memory, and compare with the advice.

`python -m finemoe.artifact.pipeline.advice_check` measures the recorded miniatures on this machine, round by round, and writes
the table. The link is paced: loading an expert takes a given time. The costs of inference and of the systems themselves are real.
Every round serves a different request. The advice is computed from the whole trace and from a testbed that is calibrated with
tiny random models (`finemoe.advice.this_machine`), so nothing in it is fitted to the cells that are checked.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

import finemoe
from finemoe.advice.advise import advise
from finemoe.advice.machine_steps import step_of, tiny_model
from finemoe.advice.systems import ALL
from finemoe.advice.this_machine import measure_testbed
from finemoe.advice.usage import usage_counts
from finemoe.advice.verdict import WITHIN, recommended
from finemoe.artifact.pipeline.micro_measurements import measure_links
from finemoe.artifact.pipeline.noise import busy_share
from finemoe.artifact.pipeline.serving import Served, serve
from finemoe.artifact.pipeline.timing import one_expert_bytes, paced_link
from finemoe.artifact.plotting import machine, save_table
from finemoe.artifact.prompts import load_prompts
from finemoe.chunks import CHUNK_BYTES, PACED_CHUNK_S
from finemoe.errors import FinemoeError
from finemoe.intervals import Interval, bootstrap_median
from finemoe.models.shipped import NAMES
from finemoe.paths import DATA, MINIATURES, ROOT
from finemoe.policies import make_policy
from finemoe.runtime.link import make_link
from finemoe.runtime.loading import load_model
from finemoe.simulation.arrangement import Arrangement
from finemoe.simulation.cost import CostModel, ModelSize
from finemoe.simulation.knowledge import Knowledge
from finemoe.simulation.replay import paced, replay_setup
from finemoe.simulation.testbed import Testbed
from finemoe.simulation.timed import ModelledPace
from finemoe.traces import RoutingTrace

SYSTEMS = ("on-demand (LRU)", "on-demand (next use)", "MoE-Infinity", "ProMoE", "FineMoE", "finemoe-plus")
SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
BAR = WITHIN  # an advised cell may take at most this multiple of the least time
_DATASET, _DISTANCE, _DTYPE = "questions", 3, "float32"  # settings of the miniatures
_ENDLESS_BYTES = 1e15
_REPETITIONS, _LAYERS, _TOP_K = 10, 12, 2  # of measurements with a tiny model
# The share of a cell's time that its threads may wait for a core (about a tenth of that is for each other), and the number of
# attempts.
_MOST_DELAYED, _ATTEMPTS = 0.12, 3
_QUIET, _LOOK_EVERY_S = 0.1, 0.5  # the machine counts as quiet below this busy share


@dataclass(frozen=True)
class Workload:
    """Requests of a miniature. Each is served alone, with a cache that starts full of the experts that other requests used most,
    so that a few tokens are representative of a long run.

    Attributes:
        name: name of the miniature.
        trace: its whole recorded routing.
        prompts: prompts of the requests.
        num_tokens: tokens generated per request.
        load_s: time to load one expert over the link, in seconds.
    """

    name: str
    trace: RoutingTrace
    prompts: Sequence[str]
    num_tokens: int
    load_s: float

    def served(self, request: int) -> RoutingTrace:
        """Recorded routing of one request."""
        whole = self.trace.split("served").select([request])
        rows = np.flatnonzero(whole.step < self.num_tokens)
        return whole.arranged(rows, np.array([0, len(rows)]))

    @cached_property
    def first_held(self) -> list[tuple[int, int]]:
        """All experts, (layer, expert), in the order in which caches are filled initially: by how often the history uses them."""
        order = np.argsort(-usage_counts(self.trace.split("history")), axis=None, kind="stable")
        return [divmod(flat, self.trace.num_experts) for flat in order.tolist()]

    @cached_property
    def knowledge(self) -> Knowledge:
        """The history and what the systems learn from it in advance."""
        return Knowledge(self.trace, self.trace.split("history"), prefetch_distance=_DISTANCE)


def measured_round(
    workload: Workload, request: int, systems: Sequence[str], shares: Sequence[float], patience_s: float = 0.0
) -> list[dict[str, Any]]:
    """Serve one request under every system at every size. A cell that was delayed by other work is measured again; the least
    delayed attempt counts.

    Args:
        patience_s: how long to wait for a quiet machine before each measurement, in seconds.
    Returns:
        Rows (model, system, expert_memory, request, counts and times of the report, delayed). `delayed` is the increase of
        `waited_s` as a share of the total time.
    Raises:
        FinemoeError: the tokens under a system differ from those of the model without an engine.
    """
    model, tokenizer = load_model(str(MINIATURES / workload.name))
    expected = serve(model, tokenizer, [workload.prompts[request]], workload.num_tokens)[0].tokens
    rows = []
    for share, name in itertools.product(shares, systems):
        found: list[tuple[float, Served]] = []
        while len(found) < _ATTEMPTS and not (found and min(delayed for delayed, _ in found) <= _MOST_DELAYED):
            await_quiet(patience_s)
            found.append(_served(workload, request, model, tokenizer, name, share))
        delayed, served = min(found, key=lambda one: one[0])
        if served.tokens != expected:
            raise FinemoeError(f"{workload.name} under {name}: tokens differ from those without an engine; nothing is written")
        cell = {"model": workload.name, "system": name, "expert_memory": share, "request": request}
        rows.append(cell | served.report | {"delayed": delayed})
    return rows


def _served(workload: Workload, request: int, model: Any, tokenizer: Any, name: str, share: float) -> tuple[float, Served]:
    """The share of the time taken by other work, and the served request."""
    system, link = ALL[name], paced_link(one_expert_bytes(model) / workload.load_s)
    options: dict[str, Any] = {"eviction": system.eviction, "prefetch_distance": _DISTANCE, **system.options}
    history = workload.knowledge.of(system.policy)
    with finemoe.offload(model, share, system.policy, history=history, **options) as engine:
        memory = engine.memories.memories[0]
        memory.preload(workload.first_held, is_counted=False)  # over the machine's real link
        memory.connect(make_link(memory.pool.device, link))
        before_s = waited_s()
        served = serve(model, tokenizer, [workload.prompts[request]], workload.num_tokens, engine)[0]
        return (waited_s() - before_s) / served.seconds, served


def await_quiet(patience_s: float) -> None:
    """Wait at most `patience_s` seconds, until other work takes little of the cores."""
    end_s = time.perf_counter() + patience_s
    while time.perf_counter() < end_s and busy_share() > _QUIET:
        time.sleep(_LOOK_EVERY_S)


def waited_s() -> float:
    """Total time in seconds that this process's threads have waited for a core; 0 if the system does not report it."""
    files = [task / "schedstat" for task in Path("/proc/self/task").glob("*")]
    return sum(int(file.read_text().split()[1]) for file in files if file.is_file()) / 1e9


def paced_testbed(testbed: Testbed, load_s: float, num_repetitions: int = _REPETITIONS) -> Testbed:
    """The machine with a paced link, over which loading an expert takes `load_s`, instead of its real link.

    Only times matter: the simulated expert is as many of the simulator's chunks as the paced link splits it into (`told_bytes`).
    The cost of waiting for a load beyond its nominal time, and the cost of a prefetch, are measured with a tiny model.
    """
    wait_s, ahead_s = beyond_s(load_s, num_repetitions)
    rate = told_bytes(load_s) / (load_s + wait_s)
    latency_s = max(0.0, ahead_s - wait_s) * PACED_CHUNK_S / load_s
    return replace(
        testbed,
        memory_bytes=_ENDLESS_BYTES,
        link_bytes_per_s=rate,
        host_bytes_per_s=rate,
        link_latency_s=latency_s,
        chunk_overhead_s=0.0,
    )


def beyond_s(load_s: float, num_repetitions: int) -> tuple[float, float]:
    """Extra seconds per expert on a paced link beyond `load_s`: if inference waits for every expert, and ahead of demand."""
    import torch

    resident, waiting, linked = (tiny_model(_LAYERS, _TOP_K, torch.device("cpu"), torch.float32) for _ in range(3))
    link, slots = paced_link(one_expert_bytes(waiting) / load_s), _TOP_K * one_expert_bytes(waiting)
    with finemoe.offload(resident, 1.0, "on-demand") as one, finemoe.offload(waiting, slots, "on-demand", link=link) as other:
        one.preload()
        here, missing = step_of(one), step_of(other)
        with one.probe.accounting():
            pairs = [(here(), missing()) for _ in range(max(2, num_repetitions // 2))]
    here_s, missing_s = np.median(pairs[1:], axis=0).tolist()  # the first pair is a warm-up
    ahead_s = measure_links(linked, [load_s], num_repetitions)[load_s].prefetch_s
    wait_s = (missing_s - here_s) / (_LAYERS * _TOP_K) - load_s
    return max(0.0, wait_s), max(0.0, ahead_s - load_s)


def told_bytes(load_s: float) -> int:
    """Simulated size of an expert that takes `load_s` on the link of a `paced_testbed`, in bytes."""
    return round(load_s / PACED_CHUNK_S * CHUNK_BYTES)


def predicted_rows(
    workload: Workload, testbed: Testbed, request: int, systems: Sequence[str], shares: Sequence[float]
) -> list[dict[str, Any]]:
    """Simulate the same request with the same caches in virtual time.

    Returns:
        Rows (model, system, expert_memory, request, tpot_s, hit_rate).
    """
    served, rows = workload.served(request), []
    size = replace(ModelSize.from_config(MINIATURES / workload.name), packed_bytes=told_bytes(workload.load_s))
    pace = ModelledPace(CostModel(size, testbed), Arrangement.one_by_one(served))
    held = [layer * served.num_experts + expert for layer, expert in workload.first_held]
    for name in systems:
        system = ALL[name]
        setup = replay_setup(served, workload.knowledge.of(system.policy), _DISTANCE)
        policy = make_policy(system.policy, setup, is_replay=True, **system.options)
        choices = [(share, system.eviction or policy.default_eviction) for share in shares]
        for share, report in zip(shares, paced(served, name, policy, choices, pace, first_held=held), strict=True):
            cell = {"model": workload.name, "system": name, "expert_memory": share, "request": request}
            rows.append(cell | {"tpot_s": report.tpot_s, "hit_rate": report.hit_rate})
    return rows


def advised_rows(workload: Workload, testbed: Testbed, systems: Sequence[str], shares: Sequence[float]) -> list[dict[str, Any]]:
    """Advice from the whole trace for every amount of expert memory, restricted to these systems.

    Returns:
        Rows (model, room, system, expert_memory).
    """
    packed = (told_bytes(workload.load_s),) * workload.trace.num_layers
    advice = advise(replace(workload.trace, expert_bytes=packed), MINIATURES / workload.name, testbed, shares)
    times = [row for row in advice.times if row["system"] in systems]
    rows = []
    for room in shares:
        chosen = recommended([row | {"fits": row["expert_memory"] <= room + 1e-9} for row in times])
        assert chosen is not None
        share = min(shares, key=lambda one: abs(one - chosen.row["expert_memory"]))
        rows.append({"model": workload.name, "room": room, "system": chosen.system, "expert_memory": share})
    return rows


def check_rows(measured: pd.DataFrame, advised: Sequence[Mapping[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Compare the advice with the best measured cell.

    Args:
        measured: rows (model, system, expert_memory, round, tpot_s).
        advised: rows (model, room, system, expert_memory).
    Returns:
        The rows of `advised` with these columns added: best_system and best_memory, the cell that fits into the room and has the
        least time (median over rounds); ratio, low, high, the advised cell's time over the best cell's in the same round (median
        over rounds with its 95 % bootstrap interval); is_within, whether the ratio is at most BAR.
    Raises:
        FinemoeError: an advised cell was not measured.
    """
    by = ["model", "system", "expert_memory"]
    times = measured.groupby([*by, "round"], sort=False).tpot_s.mean().unstack("round")
    rows = []
    for one in advised:
        cell = (one["model"], one["system"], one["expert_memory"])
        if cell not in times.index:
            raise FinemoeError(f"{one['system']} at {one['expert_memory']:g} of {one['model']} is advised but was not measured")
        fitting = [key for key in times.index.to_list() if key[0] == one["model"] and key[2] <= one["room"]]
        best = min(fitting, key=lambda key: float(times.loc[[key]].median(axis=1).iloc[0]))
        found = _ratio(times.loc[[cell]].to_numpy()[0] / times.loc[[best]].to_numpy()[0], seed)
        numbers = {"ratio": found.value, "low": found.low, "high": found.high, "is_within": bool(found.value <= BAR)}
        rows.append(dict(one) | {"best_system": best[1], "best_memory": best[2]} | numbers)
    return rows


def errors_of(predicted: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """Relative error of the predicted time per token, per cell: predicted / measured - 1, median over requests.

    Args:
        predicted, measured: rows (model, system, expert_memory, request, tpot_s).
    Returns:
        Indexed by model and expert_memory, with one column per system.
    """
    by = ["model", "expert_memory", "system", "request"]
    both = (table.groupby(by, sort=False).tpot_s.mean() for table in (predicted, measured))
    ratios = next(both) / next(both) - 1
    return ratios.groupby(by[:-1], sort=False).median().unstack("system", sort=False)


def _ratio(values: np.ndarray, seed: int) -> Interval:
    return bootstrap_median(values[np.isfinite(values)], seed=seed)


def _workloads(traces: Path, models: Sequence[str], num_served: int, num_tokens: int, load_ms: float) -> list[Workload]:
    prompts = list(load_prompts(_DATASET).to_pandas().query("split == 'served'").head(num_served)["prompt"])
    recorded = {name: RoutingTrace.load(traces / f"{name}-{_DATASET}.trace") for name in models}
    return [Workload(name, trace, prompts, num_tokens, load_ms / 1e3) for name, trace in recorded.items()]


def write_tables(
    traces: Annotated[Path, typer.Option(help="folder of recorded miniatures")] = ROOT / "results" / "traces",
    output: Annotated[Path, typer.Option()] = DATA / "reference" / "advice_check_measured.csv",
    models: Annotated[list[str], typer.Option("--model")] = list(NAMES),  # noqa: B006
    load_ms: Annotated[float, typer.Option(help="time to load an expert over the link, in ms")] = 5.0,
    num_tokens: Annotated[int, typer.Option(help="tokens generated for each request", min=2)] = 16,
    rounds: Annotated[int, typer.Option(help="number of requests; each is served in every cell", min=1)] = 3,
    patience: Annotated[float, typer.Option(help="seconds to wait for a quiet machine before each measurement", min=0)] = 0.0,
) -> None:
    """Measure all cells in turn, write the results of each round as CSV, and compare them with the predictions and the advice."""
    workloads, rows = _workloads(traces, models, rounds, num_tokens, load_ms), list[dict[str, Any]]()
    for number, one in itertools.product(range(rounds), workloads):
        found = measured_round(one, number, SYSTEMS, SHARES, patience)
        rows += [row | {"round": number, "load_ms": load_ms, "machine": machine()} for row in found]
        save_table(pd.DataFrame(rows), output)
    measured, testbed = pd.DataFrame(rows), paced_testbed(measure_testbed(dtype=_DTYPE).testbed, load_ms / 1e3)
    predicted = [
        row
        for one, request in itertools.product(workloads, range(rounds))
        for row in predicted_rows(one, testbed, request, SYSTEMS, SHARES)
    ]
    advised = [row for one in workloads for row in advised_rows(one, testbed, SYSTEMS, SHARES)]
    typer.echo(errors_of(pd.DataFrame(predicted), measured).to_string())
    typer.echo(pd.DataFrame(check_rows(measured, advised)).to_string(index=False))


if __name__ == "__main__":
    typer.run(write_tables)
