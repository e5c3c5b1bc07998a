"""The formats of recorded routing; a file's format is detected from its content, in the order listed."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

from finemoe.errors import FinemoeError
from finemoe.importers import own_trace
from finemoe.importers.opening import Head, named
from finemoe.importers.routing import Imported, Options, trace_of
from finemoe.suggestions import suggestion

_MODULES = {  # format name and module that reads it; special formats come before general ones
    "gpt-oss": "gpt_oss",
    "flame-moe": "flame_moe",
    "vllm": "vllm",
    "sglang": "sglang",
    "route-trace": "route_trace",
    "moe-trace": "moe_trace",
    "router-logits": "router_logits",
    "megatron": "megatron",
    "npz": "numpy_arrays",
    "parquet": "parquet",
    "jsonl": "json_lines",
    "csv": "table",
}
_FOLDERS, _FOLDERS_ONLY = ("gpt-oss", "flame-moe"), ("flame-moe",)
FORMATS = (own_trace.NAME, *_MODULES)


def import_trace(path: Path, format: str | None, options: Options) -> Imported:
    """Read a file's routing and record how it was read.

    Raises:
        FinemoeError: there is no such file or format, the file is damaged, or has values that a router cannot produce.
    """
    if not path.exists():
        raise FinemoeError(f"{path}: no such file; check the path")
    if format is not None and format not in FORMATS:
        raise FinemoeError(f"unknown format {format!r}; {suggestion(format, FORMATS)}")
    with named(path):
        name = format or _format_of(path)
        if name == own_trace.NAME:
            return Imported(own_trace.load(path, options), name, "stated in the file")
        found = _module(name).read(path, options)
        trace, experts_from, notes = trace_of(found, options)
    return Imported(trace, name, experts_from, notes)


def _format_of_folder(path: Path) -> str:
    for name in _FOLDERS:
        if _module(name).matches_folder(path):
            return name
    raise FinemoeError(f"is a folder, but not one of {' or '.join(_FOLDERS)}; name a file")


def _module(name: str) -> ModuleType:
    return import_module(f"finemoe.importers.{_MODULES[name]}")


def _format_of(path: Path) -> str:
    """The first format that recognises the file.

    Raises:
        FinemoeError: none does.
    """
    if path.is_dir():
        return _format_of_folder(path)
    head = Head(path)
    if own_trace.matches(head):
        return own_trace.NAME
    for name in _MODULES:
        if name not in _FOLDERS_ONLY and _module(name).matches(head):
            return name
    raise FinemoeError(f"unknown format; known: {', '.join(FORMATS)} (docs/importing.md shows them); name one if it applies")
