"""`finemoe plan`: which format, expert memory, context and policy to choose for a model on a machine."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finemoe.cli.configs import config_for
from finemoe.cli.messages import command
from finemoe.cli.options import INPUT, MACHINE, MEMORY, NO_TEXTS, AsJson
from finemoe.cli.printing import counted, digits, print_json, print_rich, wide_table
from finemoe.cli.progress import compiling_shown, is_watched, stage

if TYPE_CHECKING:
    from finemoe.planning.choices import Choice
    from finemoe.planning.plan import Plan

_WIDTH = 80

Hardware = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="A machine in data/hardware, a .yaml file, or 'here', the default, which is measured once and remembered.",
        rich_help_panel=MACHINE,
    ),
]
Context = Annotated[int, typer.Option(help="Tokens whose keys and values must fit.", min=1, metavar="N", rich_help_panel=MEMORY)]


@command
def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A miniature, a published model, a folder, a config.json, a .gguf file or a hub id."
        ),
    ],
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory of each device: '8GiB'. Default: the machine's.", rich_help_panel=MEMORY),
    ] = None,
    host_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Host memory for experts: '32GiB'. The rest is on disk.", rich_help_panel=MEMORY),
    ] = None,
    context: Context = 4096,
    hardware: Hardware = None,
    link: Annotated[
        str | None,
        typer.Option(
            metavar="RATE",
            help="Rate of the link instead of the machine's own: '24GB/s', or 'paced:24GB/s' on a CPU that imitates it.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Recorded routing of this model. Default: routing like real models'.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    gguf: Annotated[
        str | None,
        typer.Option(metavar="MIX", help="Count experts as in a GGUF file of this mix: Q4_K_M.", rich_help_panel=INPUT),
    ] = None,
    expert_format: Annotated[
        list[str],
        typer.Option(
            metavar="FORMAT",
            help="Formats to pack experts into at load: mxfp4, fp8, int8, or 'none'. Repeatable. Default: all.",
            rich_help_panel=INPUT,
        ),
    ] = NO_TEXTS,
    as_json: AsJson = False,
) -> None:
    """Plan how to run a model on a machine, from its configuration alone.

    Prints the best format, expert memory and policy with the tokens per second to expect, the two next best, what does not fit,
    and the command to type.
    """
    is_shown = is_watched(as_json)
    source = config_for(model)
    recorded = None
    with stage("importing PyTorch and Transformers", is_shown):
        from finemoe.planning.loaded import PACKED_AT_LOAD
        from finemoe.planning.plan import plan as plan_for
    if trace is not None:
        from finemoe.importers import read_trace

        with stage(f"reading {trace}", is_shown):
            recorded = read_trace(trace)
    formats = [one for one in expert_format if one != "none"] if expert_format else PACKED_AT_LOAD
    with compiling_shown(is_shown), stage("predicting", is_shown), measuring_noted():
        found = plan_for(
            model,
            memory,
            hardware,
            host_memory=host_memory,
            context=context,
            trace=recorded,
            link=link,
            gguf=gguf,
            formats=formats,
            source=source,
        )
    print_json(found.to_dict()) if as_json else print_plan(found)


@contextmanager
def measuring_noted() -> Iterator[None]:
    """Say on stderr if this machine is measured within the block, and where the result is kept."""
    from finemoe.planning.place import testbed_file

    path = testbed_file()
    was_there = path.is_file()
    yield
    if not was_there and path.is_file():
        typer.echo(f"note: this machine was measured; {path} keeps the result for the next plans", err=True)


def print_plan(plan: "Plan") -> None:
    """The plan in words and one table."""
    from finemoe.units import format_bytes

    typer.echo(f"{plan.model} on {plan.machine}")
    host = "" if plan.host_memory_bytes is None else f", host memory {format_bytes(plan.host_memory_bytes)}"
    typer.echo(f"memory {format_bytes(plan.memory_bytes)}{host}, context {plan.context:,} tokens\n")
    _print_table(plan)
    typer.echo("")
    _say(f"Best: {_words(plan.best)}.")
    for one in plan.misfits:
        most = f"; with a context of {one.largest_context:,} tokens it would" if one.largest_context else ""
        _say(f"{one.expert_format} does not fit: {format_bytes(one.missing_bytes)} too little{most}.")
    rest = plan.other_bytes + plan.kv_bytes + plan.reserve_bytes
    _say(
        f"Not for experts: {format_bytes(rest)} of the memory, {format_bytes(plan.other_bytes)} other weights, "
        f"{format_bytes(plan.kv_bytes)} keys and values, {format_bytes(plan.reserve_bytes)} reserve."
    )
    _say(f"Basis: {plan.basis}.")
    for note in plan.notes:
        _say(f"Note: {note}.")
    typer.echo(f"\n{plan.best.command}")


def _print_table(plan: "Plan") -> None:
    from finemoe.units import format_bytes

    table = wide_table(None, "format, policy", ["expert memory", "held", "hits, %", "tokens/s", "prompt"])
    for one in plan.choices:
        lossy, rule = " (lossy)" * one.is_lossy, f", {one.eviction}" if one.eviction else ""
        table.add_row(
            f"{one.expert_format}{lossy}, {one.policy}{rule}",
            format_bytes(one.expert_memory_bytes),
            f"{one.slots / one.all_experts:.0%}",
            _range(one.hit_rate, 100),
            _range(one.tokens_per_s),
            f"{digits(one.ttft_s)} s",
        )
    print_rich(table)


def _words(one: "Choice") -> str:
    from finemoe.units import format_bytes

    is_packed_here = one.is_lossy and not one.expert_format.startswith("gguf")
    lossy = f" (--expert-format {one.expert_format}, lossy)" if is_packed_here else " (lossy)" * one.is_lossy
    rule = f" with {one.eviction} eviction" if one.eviction else ""
    return (
        f"experts in {one.expert_format}{lossy}, {format_bytes(one.expert_memory_bytes)} of expert memory for "
        f"{one.slots:,} of {counted(one.all_experts, 'expert')}, {one.policy}{rule}: {_range(one.tokens_per_s)} tokens/s"
    )


def _range(values: tuple[float, float], factor: float = 1.0, unit: str = "") -> str:
    low, high = (digits(factor * value) for value in values)
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def _say(text: str) -> None:
    typer.echo(textwrap.fill(text, _WIDTH, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False))
