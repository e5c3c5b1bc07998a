"""`python -m finemoe.artifact.gpu_bench --out DIR`: measure what needs a GPU within the available time; rerun it to continue.

`predict DIR` compares the simulator's predictions with the measurements, away from the device. For a machine on which every
second counts, `record DIR` records the routing in advance, and `compile` compiles in advance.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from finemoe.artifact.gpu_bench.alarm import Alarm, age_s
from finemoe.artifact.gpu_bench.settings import POLICIES
from finemoe.errors import FinemoeError, one_line_for_bad_input
from finemoe.files import require_place

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_ALL: list[str] = []
_SHARES: list[float] = []
Models = Annotated[list[str], typer.Option("--model", "-m", help="a published size, a miniature, a folder or a hub id")]
Policies = Annotated[list[str], typer.Option(help=f"of {', '.join(POLICIES)}; repeatable, in this order; default: all")]
Shares = Annotated[list[float], typer.Option(help="shares of all experts; repeatable; default: 0.125 0.25 0.5 0.75 1")]
Prompts = Annotated[int | None, typer.Option(help="requests recorded; 7 of 10 become the history", min=4)]
Served = Annotated[int | None, typer.Option(help="requests timed in every cell", min=1)]
Tokens = Annotated[int | None, typer.Option(help="decode steps of every recorded request", min=2)]
Traces = Annotated[Path | None, typer.Option(help="folder of routing recorded in advance; missing traces are recorded")]


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    out: Annotated[Path | None, typer.Option(help="folder for tables, timelines and the state needed to resume")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="start no part that would end later than this; rerun for the rest", min=0)
    ] = None,
    deadline: Annotated[float | None, typer.Option(help="seconds after which the process must have ended", min=1)] = None,
    groups: Annotated[
        str,
        typer.Option(help="what to measure, in this order: GROUP or GROUP:WORD, separated by commas; --plan lists all"),
    ] = "",
    model: Models = _ALL,
    policy: Policies = _ALL,
    expert_memory: Shares = _SHARES,
    check: Annotated[list[str], typer.Option(help="a miniature checked for bit-equality; repeatable; default: all")] = _ALL,
    steps: Annotated[int | None, typer.Option(help="decode steps checked under every policy", min=1)] = None,
    prompts: Prompts = None,
    served: Served = None,
    tokens: Tokens = None,
    rounds: Annotated[int | None, typer.Option(help="repetitions of short measurements", min=1)] = None,
    baseline_tokens: Annotated[int | None, typer.Option(help="decode steps under Accelerate", min=1)] = None,
    traces: Traces = None,
    host_memory: Annotated[
        str | None, typer.Option(help="host memory that may be used, e.g. 120GiB, if the machine reports less than it has")
    ] = None,
    predictions: Annotated[bool, typer.Option(help="run the simulator at the end; otherwise run `predict` later")] = True,
    again: Annotated[bool, typer.Option(help="repeat measurements that earlier runs completed")] = False,
    quick: Annotated[
        bool, typer.Option(help="few requests, tokens and repetitions: to test that it works, not how fast it is")
    ] = False,
    plan: Annotated[bool, typer.Option(help="only print the planned parts and their estimated times")] = False,
) -> None:
    """Measure this machine; without a GPU, miniatures with pools of host memory as devices, which the tables state."""
    sys.excepthook = one_line_for_bad_input
    if context.invoked_subcommand is not None:
        return
    if out is None:
        raise typer.BadParameter("specify a folder for the tables: --out DIR", param_hint="--out")
    require_place(out / "machine.json")
    alarm = Alarm(None if deadline is None else deadline - age_s())
    from finemoe.artifact.gpu_bench.machine import compute_device, machine_title
    from finemoe.artifact.gpu_bench.settings import require_device, settings_for
    from finemoe.cache.capacity import byte_count

    settings = _changed(
        settings_for(compute_device().type == "cuda", quick),
        models=model,
        policies=policy,
        expert_memories=expert_memory,
        checked_models=check,
        steps=steps,
        num_prompts=prompts,
        num_served=served,
        num_tokens=tokens,
        num_rounds=rounds,
        baseline_tokens=baseline_tokens,
        groups=[one for one in groups.split(",") if one],
        host_memory_bytes=None if host_memory is None else byte_count(host_memory, "host_memory"),
        traces=traces,
    )
    require_device(settings.targets(), compute_device().type)
    typer.echo(f"machine: {machine_title()}; models: {', '.join(one.name for one in settings.targets())}")
    if plan:
        _say_plan(settings, out)
    else:
        _measure(settings, out, minutes, alarm, predictions, again)


@app.command("predict")
def predict_command(
    folder: Annotated[Path, typer.Argument(help="tables of one machine; with --before, folder for predictions-before-CARD.csv")],
    before: Annotated[
        list[str], typer.Option(help="a card in data/hardware without measurements, to predict in advance; repeatable")
    ] = _ALL,
    model: Models = _ALL,
    policy: Policies = _ALL,
    expert_memory: Shares = _SHARES,
    prompts: Prompts = None,
    served: Served = None,
    tokens: Tokens = None,
    traces: Traces = None,
) -> None:
    """The simulator's predictions, made away from the device: for measured cells, or in advance for a card."""
    from finemoe.artifact.gpu_bench.predict import foretell, predict
    from finemoe.artifact.gpu_bench.settings import settings_for
    from finemoe.artifact.machines.foretold import foretold_path

    if not before:
        rows = predict(folder, traces)
        if not rows:
            raise FinemoeError(f"{folder}: predictions need the tables copies, kernels, software and systems of one model")
        typer.echo(f"{len(rows)} predictions are in {folder / 'predictions.csv'}")
        return
    settings = _changed(
        settings_for(is_cuda=True),
        models=model,
        policies=policy,
        expert_memories=expert_memory,
        num_prompts=prompts,
        num_served=served,
        num_tokens=tokens,
        traces=traces,
    )
    for card in before:
        typer.echo(f"{len(foretell(card, settings, folder))} cells are in {foretold_path(card, folder)}")


@app.command("show")
def show_command(folder: Annotated[Path, typer.Argument(help="tables of one machine")]) -> None:
    """Print the measurements as one page of text."""
    from finemoe.artifact.machines.measured import Measured
    from finemoe.artifact.machines.pages import machine_section

    typer.echo(machine_section(Measured.load(folder)))


@app.command("record")
def record_command(
    folder: Annotated[Path, typer.Argument(help="folder for the traces")],
    model: Models,
    prompts: Prompts = None,
    tokens: Tokens = None,
) -> None:
    """Record the routing to serve, away from the device."""
    from finemoe.artifact.gpu_bench.routing import routing_of
    from finemoe.artifact.gpu_bench.settings import settings_for

    settings = _changed(settings_for(is_cuda=True), models=model, num_prompts=prompts, num_tokens=tokens)
    require_place(folder / "any.trace")
    for target in settings.targets():
        trace = routing_of(target, settings, folder)
        typer.echo(f"{target.name}: {trace.num_requests} requests, {trace.num_rows} tokens in {folder}")


@app.command("compile")
def compile_command(policy: Policies = _ALL) -> None:
    """Compile the kernels of these policies' engines and forecasts into the cache on disk, before any measurement."""
    import torch

    from finemoe.artifact.gpu_bench.correctness import check
    from finemoe.artifact.gpu_bench.settings import settings_for
    from finemoe.simulation.warm_up import warm_up

    settings = _changed(settings_for(is_cuda=False), policies=policy)
    warm_up()
    check(settings.checked_models[0], settings.policies, 1, torch.device("cpu"), settings.seed)


def _changed(settings: Any, **given: Any) -> Any:
    """Settings with the user's options applied, lists and paths converted; None and [] leave a setting unchanged."""
    from finemoe.artifact.gpu_bench.settings import require_known

    changes = {name: value for name, value in given.items() if value not in (None, [])}
    kinds: dict[type, Any] = {list: tuple, type(Path()): str}
    changed = replace(settings, **{name: kinds.get(type(value), lambda same: same)(value) for name, value in changes.items()})
    require_known(changed)
    return changed


def _say_plan(settings: Any, out: Path) -> None:
    from finemoe.artifact.gpu_bench.agenda import chosen, parts
    from finemoe.artifact.gpu_bench.machine import compute_device
    from finemoe.artifact.gpu_bench.subjects import Subjects

    whole = chosen(parts(settings, Subjects(settings, out, compute_device()), out), settings.groups)
    for part in whole:
        typer.echo(f"{part.seconds:4.0f} s  {part.title}")
    typer.echo(f"{sum(part.seconds for part in whole) / 60:.0f} minutes for {len(whole)} parts, excluding the loading of models")


def _measure(settings: Any, out: Path, minutes: float | None, alarm: Alarm, predicts: bool, again: bool) -> None:
    from transformers.utils.logging import disable_progress_bar

    from finemoe.artifact.gpu_bench.agenda import measure

    disable_progress_bar()
    outcome = measure(settings, out, minutes, typer.echo, alarm, predicts, again)
    for one in outcome.skipped:
        typer.echo(f"not measured here: {one.group} {one.part} ({one.reason})")
    for one in outcome.failed:
        typer.echo(f"FAILED: {one.group} {one.part} ({one.reason})", err=True)
    if outcome.left:
        typer.echo(f"{len(outcome.left)} parts left; run again to continue with {outcome.left[0]}")
    typer.echo(f"tables are in {out}")
    raise typer.Exit(1 if outcome.failed else 0)


if __name__ == "__main__":
    app(prog_name="python -m finemoe.artifact.gpu_bench")
