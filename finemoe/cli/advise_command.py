"""`finemoe advise`: how much expert memory, which rule, whether prefetching pays, and how far off the best is."""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from finemoe.cli.configs import sizes_for
from finemoe.cli.messages import command, writing
from finemoe.cli.options import INPUT, MACHINE, MEMORY, NO_TEXTS, OUTPUT, AsJson, Distance, Seed, memory_of
from finemoe.cli.printing import print_json
from finemoe.cli.progress import compiling_shown, is_watched, share_read, stage
from finemoe.errors import FinemoeError
from finemoe.extras import module_of_extra

_HERE, _HERE_FILE = "here", Path("here.yaml")
_STEPS, _TIMED_STEPS = 2, 1  # announced in addition to the systems: without and with a machine


@command
def advise(
    trace: Annotated[
        Path, typer.Argument(metavar="TRACE", help="A trace file, or the recording of another program (docs/importing.md).")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="The model whose sizes count: a name in data/models/configs, a config.json, .gguf, folder or hub id.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Format of a foreign TRACE. Default: found by its content.", rich_help_panel=INPUT),
    ] = None,
    experts: Annotated[
        int | None,
        typer.Option(help="Experts per layer, if a foreign TRACE lacks them.", min=1, metavar="N", rich_help_panel=INPUT),
    ] = None,
    context: Annotated[
        int, typer.Option(help="Tokens before every request, in the KV cache.", min=0, metavar="N", rich_help_panel=INPUT)
    ] = 0,
    tokens: Annotated[
        int, typer.Option(help="Tokens to replay in virtual time, about.", min=1, metavar="N", rich_help_panel=INPUT)
    ] = 4000,
    history_tokens: Annotated[
        int,
        typer.Option(help="Tokens that learning systems know beforehand, about.", min=1, metavar="N", rich_help_panel=INPUT),
    ] = 15000,
    expert_memory: Annotated[
        list[str],
        typer.Option(
            metavar="SIZE",
            help="A size to examine: a share of all experts ('0.25') or bytes per device ('6GiB'). Repeatable.",
            rich_help_panel=MEMORY,
        ),
    ] = NO_TEXTS,
    expert_bits: Annotated[
        float | None,
        typer.Option(metavar="BITS", help="Bits per weight of an expert, such as 4.25 in MXFP4.", rich_help_panel=MEMORY),
    ] = None,
    gguf: Annotated[
        str | None,
        typer.Option(metavar="MIX", help="Count the experts of --model as in a GGUF file: Q4_K_M.", rich_help_panel=MEMORY),
    ] = None,
    host_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Host memory for experts; warns if they exceed it: '32GiB'.", rich_help_panel=MEMORY),
    ] = None,
    prefetch_distance: Distance = None,
    seed: Seed = 0,
    hardware: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A machine in data/hardware, a .yaml file, or 'here' to measure this machine.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(metavar="RATE", help="Rate of the link instead of the machine's own: '24GB/s'.", rich_help_panel=MACHINE),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write one self-contained HTML page.", rich_help_panel=OUTPUT),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Advise on expert memory, eviction rules and prefetching from a trace.

    Reports how much expert memory a model needs, which system serves it best, whether prefetching pays on a machine, and how far
    each is from the best possible.
    """
    from finemoe.cli.advice_table import print_advice
    from finemoe.files import require_place

    is_shown = is_watched(as_json)
    memories = [memory_of(memory) for memory in expert_memory]
    if link is not None and hardware is None:
        raise FinemoeError("--link is the rate of the link of --hardware; give both")
    if page is not None:
        require_place(page)
        drawing()
    with stage("importing NumPy and Numba", is_shown):
        sizes = sizes_for(model, gguf)
        from finemoe.advice.advise import advise as advise_on
        from finemoe.importers import read_trace
    with stage(f"reading {trace}", is_shown, share_read(trace)):
        recorded = read_trace(trace, format, num_experts=experts, model=model or "")
    with compiling_shown(is_shown):
        testbed = _testbed(hardware, link, is_shown)
        with _steps(hardware is not None, is_shown) as say:
            advice = advise_on(
                recorded,
                model=sizes,
                hardware=testbed,
                expert_memories=memories,
                context=context,
                expert_bits=expert_bits,
                host_memory=host_memory,
                prefetch_distance=prefetch_distance,
                served_rows=tokens,
                history_rows=history_tokens,
                seed=seed,
                say=say,
            )
    if page is not None:
        with stage(f"drawing {page}", is_shown), writing(page):
            drawing().write_page(advice, trace.name, page, shlex.join(["finemoe", *sys.argv[1:]]))
    if as_json:
        print_json(advice.to_dict())
        return
    print_advice(advice, str(trace))
    if page is not None:
        typer.echo(f"{page}: the same with figures")


def drawing() -> ModuleType:
    """The module that draws pages.

    Raises:
        FinemoeError: the extra is not installed.
    """
    return module_of_extra("finemoe.artifact.advice.page", "--page", "page")


@contextmanager
def _steps(is_timed: bool, is_shown: bool) -> Iterator[Callable[[str], None]]:
    """A bar that moves on whenever the next step is announced."""
    from tqdm import tqdm

    from finemoe.advice.systems import ALL

    total = _STEPS + (len(ALL) + _TIMED_STEPS) * is_timed
    with tqdm(total=total, desc="advising", unit="step", leave=False, disable=not is_shown) as bar:
        announced: list[str] = []

        def say(text: str) -> None:
            bar.update(len(announced[-1:]))  # the step before is done
            announced.append(text)
            bar.set_description(text)

        yield say


def _testbed(hardware: str | None, link: str | None, is_shown: bool) -> Any:
    """A testbed, measured if it is this machine, with another link if one is given."""
    from dataclasses import replace

    from finemoe.simulation.testbed import Testbed
    from finemoe.units import parse_rate

    if hardware is None:
        return None
    if hardware == _HERE:
        from finemoe.advice.this_machine import write_testbed

        if _HERE_FILE.exists():
            raise FinemoeError(f"{_HERE_FILE} exists already; use it with --hardware {_HERE_FILE}, or remove it to measure again")
        with stage("measuring this machine", is_shown):
            testbed = write_testbed(_HERE_FILE)
        typer.echo(f"{_HERE_FILE}: the measured machine; --hardware {_HERE_FILE} uses it again", err=True)
    else:
        testbed = Testbed.load(hardware)
    if link is None:
        return testbed
    rate = parse_rate(link)
    return replace(testbed, link_bytes_per_s=rate, host_bytes_per_s=max(rate * testbed.devices, testbed.host_bytes_per_s))
