"""`finemoe advise`: how much expert memory, which rule, whether prefetching pays, and how far off the best is."""

import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from finemoe.cli.options import AsJson, Distance, Seed, memory_of
from finemoe.cli.printing import print_json
from finemoe.errors import FinemoeError
from finemoe.extras import module_of_extra

_NONE = list[str]()  # the default of an option that may be given several times
_HERE, _HERE_FILE = "here", Path("here.yaml")


def advise(
    trace: Annotated[Path, typer.Argument(help="a trace, or what another project recorded (docs/importing.md)")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="whose sizes: a name in data/models/configs, a config.json, a folder, a hub id"),
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(help="a testbed in data/hardware, a .yaml file, or 'here' to measure this machine")
    ] = None,
    expert_memory: Annotated[
        list[str], typer.Option(help="a size to look at: a share of all experts ('0.25') or bytes a device; again for more")
    ] = _NONE,
    context: Annotated[int, typer.Option(help="tokens that stand before every request", min=0)] = 0,
    expert_bits: Annotated[float | None, typer.Option(help="of a weight of an expert, as 4.25 in MXFP4")] = None,
    link: Annotated[str | None, typer.Option(help="the link's rate instead of the testbed's, as '24GB/s'")] = None,
    page: Annotated[Path | None, typer.Option(help="also write one self-contained HTML page to this file")] = None,
    tokens: Annotated[int, typer.Option(help="about how many tokens are replayed in virtual time", min=1)] = 4000,
    history_tokens: Annotated[int, typer.Option(help="about how many tokens learning systems know beforehand", min=1)] = 15000,
    prefetch_distance: Distance = None,
    format: Annotated[str | None, typer.Option(help="of a foreign trace, if it is not recognised")] = None,
    experts: Annotated[int | None, typer.Option(help="of a layer, if a foreign trace does not say how many", min=1)] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Say how much expert memory a model needs, under which rule or system, whether loading ahead pays on a machine, and how far
    that is from the best possible; from a trace, in virtual time."""
    from finemoe.advice.advise import advise as advise_on
    from finemoe.cli.advice_table import print_advice
    from finemoe.files import require_place

    memories = [memory_of(memory) for memory in expert_memory]
    if link is not None and hardware is None:
        raise FinemoeError("--link is the rate of the link of --hardware; give both")
    if page is not None:
        require_place(page)
        drawing()
    advice = advise_on(
        _read(trace, format, experts, model),
        model=model,
        hardware=_testbed(hardware, link),
        expert_memories=memories,
        context=context,
        expert_bits=expert_bits,
        prefetch_distance=prefetch_distance,
        served_rows=tokens,
        history_rows=history_tokens,
        seed=seed,
        say=_say,
    )
    if page is not None:
        drawing().write_page(advice, trace.name, page, shlex.join(["finemoe", *sys.argv[1:]]))
    if as_json:
        print_json(advice.to_dict())
        return
    print_advice(advice, str(trace))
    if page is not None:
        typer.echo(f"{page}: the same with figures")


def drawing() -> ModuleType:
    """What makes pages.

    Raises:
        FinemoeError: it is not installed.
    """
    return module_of_extra("finemoe.artifact.advice.page", "--page", "page")


def _read(path: Path, format: str | None, experts: int | None, model: str | None) -> Any:
    from finemoe.importers import read_trace

    return read_trace(path, format, num_experts=experts, model=model or "")


def _testbed(hardware: str | None, link: str | None) -> Any:
    """A testbed, measured if it is this machine, with another link if one is given."""
    from dataclasses import replace

    from finemoe.simulation.testbed import Testbed
    from finemoe.units import parse_rate

    if hardware is None:
        return None
    if hardware == _HERE:
        from finemoe.advice.this_machine import write_testbed

        if _HERE_FILE.exists():
            raise FinemoeError(f"{_HERE_FILE} is there already: --hardware {_HERE_FILE} takes it, or remove it to measure anew")
        _say("measuring this machine")
        testbed = write_testbed(_HERE_FILE)
        typer.echo("here.yaml: what was measured of this machine; --hardware here.yaml takes it again", err=True)
    else:
        testbed = Testbed.load(hardware)
    if link is None:
        return testbed
    rate = parse_rate(link)
    return replace(testbed, link_bytes_per_s=rate, host_bytes_per_s=max(rate * testbed.devices, testbed.host_bytes_per_s))


def _say(text: str) -> None:
    """On standard error, where it can be watched and does not mix with what is asked for."""
    typer.echo(f"... {text}", err=True)
