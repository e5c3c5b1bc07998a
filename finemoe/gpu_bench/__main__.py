"""`python -m finemoe.gpu_bench --out DIR --minutes N`: measure what needs a GPU while the time lasts; call again to go on."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from finemoe.errors import one_line_for_bad_input
from finemoe.gpu_bench.settings import POLICIES

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_ALL: list[str] = []
_SHARES: list[float] = []


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="folder for tables, timelines and what is needed to go on later")],
    minutes: Annotated[float | None, typer.Option(help="stop in time; what is left is done by the next call")] = None,
    model: Annotated[list[str], typer.Option("--model", "-m", help="a published size, a miniature, a folder or a hub id")] = _ALL,
    policy: Annotated[list[str], typer.Option(help=f"of {', '.join(POLICIES)}; again for more; default: all")] = _ALL,
    expert_memory: Annotated[list[float], typer.Option(help="shares of all experts; default: 0.125 0.25 0.5 0.75 1")] = _SHARES,
    quick: Annotated[
        bool, typer.Option(help="few requests, tokens and repetitions: whether it works, not how fast it is")
    ] = False,
    plan: Annotated[bool, typer.Option(help="only say what would be done, and how long it takes at most")] = False,
) -> None:
    """Measure this machine; without a GPU the miniatures' sizes on pools of host memory, which says so in its tables."""
    from transformers.utils.logging import disable_progress_bar

    from finemoe.gpu_bench.machine import compute_device, machine_facts
    from finemoe.gpu_bench.plan import measure, parts
    from finemoe.gpu_bench.settings import require_device, settings_for
    from finemoe.gpu_bench.subjects import Subjects

    sys.excepthook = one_line_for_bad_input
    disable_progress_bar()
    settings = settings_for(compute_device().type == "cuda", quick)
    given = {"models": tuple(model), "policies": tuple(policy), "expert_memories": tuple(expert_memory)}
    settings = replace(settings, **{name: value for name, value in given.items() if value})  # type: ignore[arg-type]
    require_device(settings.targets(), compute_device().type)
    typer.echo(f"machine: {machine_facts()['title']}; models: {', '.join(one.name for one in settings.targets())}")
    if plan:
        whole = parts(settings, Subjects(settings, out, compute_device()), out)
        for part in whole:
            typer.echo(f"{part.minutes:4.1f} min  {part.title}")
        typer.echo(f"{sum(part.minutes for part in whole):.0f} minutes at most for {len(whole)} parts")
        return
    outcome = measure(settings, out, minutes, typer.echo)
    for one in outcome.skipped:
        typer.echo(f"not measured here: {one.group} {one.part} ({one.reason})")
    for one in outcome.failed:
        typer.echo(f"FAILED: {one.group} {one.part} ({one.reason})", err=True)
    if outcome.left:
        typer.echo(f"{len(outcome.left)} parts left; call again to go on with {outcome.left[0]}")
    typer.echo(f"tables are in {out}")
    raise typer.Exit(1 if outcome.failed else 0)


if __name__ == "__main__":
    app(prog_name="python -m finemoe.gpu_bench")
