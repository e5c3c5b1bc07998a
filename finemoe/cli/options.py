"""Options that several commands take, and what their text means."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from finemoe.errors import FinemoeError

SYSTEMS = (
    "finemoe, finemoe-plus, moe-infinity, promoe, mixtral-offloading, deepspeed-inference, on-demand, no-offload, or module:Class"
)
Model = Annotated[str, typer.Option("--model", "-m", help="a miniature's name, a local folder, or a hub id")]
Distance = Annotated[int | None, typer.Option(help="layers ahead; default: 3, or as many as there are", min=1)]
Capacity = Annotated[int, typer.Option(help="maps in the store", min=1)]
Seed = Annotated[int, typer.Option(help="of policies that draw", min=0)]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object instead of text")]


def reach_own(*names: str | None) -> None:
    """A policy or rule of the user's own, "module:Class", may lie in the working folder; it is searched last."""
    folder = str(Path.cwd())
    if folder not in sys.path and any(name is not None and ":" in name for name in names):
        sys.path.append(folder)


def memory_of(text: str) -> float | str:
    """What `--expert-memory` says: a share of all experts, or bytes with their unit as they stand.

    Raises:
        FinemoeError: neither.
    """
    from finemoe.units import parse_bytes

    try:
        number = float(text)
    except ValueError:
        try:
            parse_bytes(text)
        except FinemoeError as error:
            raise FinemoeError(f"--expert-memory: {error}; or a share of all experts, such as 0.25") from error
        return text
    if not 0 < number <= 1:
        raise FinemoeError(f"--expert-memory {text}: a bare number is a share in (0, 1]; for bytes add a unit, such as '6GiB'")
    return number


def loaded_store(path: Path | None) -> Any:
    """The Expert Map Store in a file, or None without one."""
    if path is None:
        return None
    from finemoe.maps.store import ExpertMapStore

    return ExpertMapStore.load(path)
