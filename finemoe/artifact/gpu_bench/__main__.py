"""`python -m finemoe.artifact.gpu_bench --out DIR`: measure what needs a GPU while the time lasts; call again to go on.

`predict DIR` sets the simulator's answers beside what was measured, away from the device; `record DIR` makes the routing that is
served beforehand, for a machine on which every second counts, and `compile` what is compiled there.
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
Policies = Annotated[list[str], typer.Option(help=f"of {', '.join(POLICIES)}; again for more, in this order; default: all")]
Shares = Annotated[list[float], typer.Option(help="shares of all experts, in this order; default: 0.125 0.25 0.5 0.75 1")]
Prompts = Annotated[int | None, typer.Option(help="requests recorded, 7 of 10 for the history", min=4)]
Served = Annotated[int | None, typer.Option(help="requests timed in every cell", min=1)]
Tokens = Annotated[int | None, typer.Option(help="decode steps of every recorded request", min=2)]
Traces = Annotated[Path | None, typer.Option(help="folder of routing recorded beforehand, used where it has the file")]


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    out: Annotated[Path | None, typer.Option(help="folder for tables, timelines and what is needed to go on later")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="begin nothing that would end later; call again for the rest", min=0)
    ] = None,
    deadline: Annotated[float | None, typer.Option(help="seconds after which it has ended, whatever it was doing", min=1)] = None,
    groups: Annotated[
        str,
        typer.Option(help="what to measure, in this order: GROUP or GROUP:WORD with commas; --plan lists all"),
    ] = "",
    model: Models = _ALL,
    policy: Policies = _ALL,
    expert_memory: Shares = _SHARES,
    check: Annotated[list[str], typer.Option(help="a miniature whose bits are checked; again for more; default: all")] = _ALL,
    steps: Annotated[int | None, typer.Option(help="decode steps that are checked under every policy", min=1)] = None,
    prompts: Prompts = None,
    served: Served = None,
    tokens: Tokens = None,
    rounds: Annotated[int | None, typer.Option(help="repetitions of short measurements", min=1)] = None,
    baseline_tokens: Annotated[int | None, typer.Option(help="decode steps under Accelerate", min=1)] = None,
    traces: Traces = None,
    host_memory: Annotated[
        str | None, typer.Option(help="how much of the host's memory may be taken, e.g. 120GiB, where it says less than it has")
    ] = None,
    predictions: Annotated[bool, typer.Option(help="the simulator's answers at the end, or later by `predict`")] = True,
    again: Annotated[bool, typer.Option(help="measure once more what earlier calls have done")] = False,
    quick: Annotated[
        bool, typer.Option(help="few requests, tokens and repetitions: whether it works, not how fast it is")
    ] = False,
    plan: Annotated[bool, typer.Option(help="only say what would be done, and a guess of how long it takes")] = False,
) -> None:
    """Measure this machine; without a GPU the miniatures' sizes on pools of host memory, which says so in its tables."""
    sys.excepthook = one_line_for_bad_input
    if context.invoked_subcommand is not None:
        return
    if out is None:
        raise typer.BadParameter("say where the tables go: --out DIR", param_hint="--out")
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
    folder: Annotated[Path, typer.Argument(help="tables of one machine; with --before, where predictions-before-CARD.csv goes")],
    before: Annotated[
        list[str], typer.Option(help="a card in data/hardware that nobody has measured: what is expected there; again for more")
    ] = _ALL,
    model: Models = _ALL,
    policy: Policies = _ALL,
    expert_memory: Shares = _SHARES,
    prompts: Prompts = None,
    served: Served = None,
    tokens: Tokens = None,
    traces: Traces = None,
) -> None:
    """The simulator's answers, away from the device: for what was measured, or beforehand for a card."""
    from finemoe.artifact.gpu_bench.predict import foretell, predict
    from finemoe.artifact.gpu_bench.settings import settings_for
    from finemoe.artifact.machines.foretold import foretold_path

    if not before:
        rows = predict(folder, traces)
        if not rows:
            raise FinemoeError(f"{folder}: copies, kernels, software and systems of one model are needed to predict anything")
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
    """What was measured, in one page of text."""
    from finemoe.artifact.machines.measured import Measured
    from finemoe.artifact.machines.pages import machine_section

    typer.echo(machine_section(Measured.load(folder)))


@app.command("record")
def record_command(
    folder: Annotated[Path, typer.Argument(help="where the traces go")],
    model: Models,
    prompts: Prompts = None,
    tokens: Tokens = None,
) -> None:
    """Record the routing that is served, away from the device."""
    from finemoe.artifact.gpu_bench.routing import routing_of
    from finemoe.artifact.gpu_bench.settings import settings_for

    settings = _changed(settings_for(is_cuda=True), models=model, num_prompts=prompts, num_tokens=tokens)
    require_place(folder / "any.trace")
    for target in settings.targets():
        trace = routing_of(target, settings, folder)
        typer.echo(f"{target.name}: {trace.num_requests} requests, {trace.num_rows} tokens in {folder}")


@app.command("compile")
def compile_command(policy: Policies = _ALL) -> None:
    """Compile what these policies' engines and forecasts run, into the cache on disk, so that no measurement waits for it."""
    import torch

    from finemoe.artifact.gpu_bench.correctness import check
    from finemoe.artifact.gpu_bench.settings import settings_for
    from finemoe.simulation.warm_up import warm_up

    settings = _changed(settings_for(is_cuda=False), policies=policy)
    warm_up()
    check(settings.checked_models[0], settings.policies, 1, torch.device("cpu"), settings.seed)


def _changed(settings: Any, **given: Any) -> Any:
    """Settings with what the user has said, lists and paths as settings hold them; None and [] leave them as they are."""
    from finemoe.artifact.gpu_bench.settings import require_known

    said = {name: value for name, value in given.items() if value not in (None, [])}
    kinds: dict[type, Any] = {list: tuple, type(Path()): str}
    changed = replace(settings, **{name: kinds.get(type(value), lambda same: same)(value) for name, value in said.items()})
    require_known(changed)
    return changed


def _say_plan(settings: Any, out: Path) -> None:
    from finemoe.artifact.gpu_bench.agenda import chosen, parts
    from finemoe.artifact.gpu_bench.machine import compute_device
    from finemoe.artifact.gpu_bench.subjects import Subjects

    whole = chosen(parts(settings, Subjects(settings, out, compute_device()), out), settings.groups)
    for part in whole:
        typer.echo(f"{part.seconds:4.0f} s  {part.title}")
    typer.echo(f"{sum(part.seconds for part in whole) / 60:.0f} minutes for {len(whole)} parts, beside bringing models in")


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
        typer.echo(f"{len(outcome.left)} parts left; call again to go on with {outcome.left[0]}")
    typer.echo(f"tables are in {out}")
    raise typer.Exit(1 if outcome.failed else 0)


if __name__ == "__main__":
    app(prog_name="python -m finemoe.artifact.gpu_bench")
