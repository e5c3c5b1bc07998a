"""`finemoe info`: what a model, a trace or a store is."""

from pathlib import Path
from typing import Annotated, Any

import typer

from finemoe.cli.configs import config_for
from finemoe.cli.info_text import print_model
from finemoe.cli.messages import command
from finemoe.cli.options import INPUT, AsJson
from finemoe.cli.plan_command import Context, Hardware, measuring_noted
from finemoe.cli.printing import print_json, print_table
from finemoe.cli.progress import is_watched, share_read, stage
from finemoe.errors import FinemoeError

_LABELS = {
    "num_requests": "requests",
    "num_rows": "tokens",
    "num_layers": "MoE layers",
    "num_experts": "experts per layer",
    "top_k": "experts per token",
    "lookahead_strides": "routers applied ahead, layers",
    "nbytes": "size",
}


@command
def info(
    what: Annotated[
        str,
        typer.Argument(metavar="WHAT", help="A miniature, a folder, a config.json, a .gguf file, a hub id, a trace or a store."),
    ],
    gguf: Annotated[
        str | None,
        typer.Option(
            metavar="MIX", help="Count a model's experts as in a GGUF file of this mix, such as Q4_K_M.", rich_help_panel=INPUT
        ),
    ] = None,
    hardware: Hardware = None,
    context: Context = 4096,
    as_json: AsJson = False,
) -> None:
    """Describe a model, a trace file or an Expert Map Store.

    Of a model: its geometry, its bytes, what this machine or another holds of it, and how fast that will be.
    """
    from finemoe.runtime.gguf_names import gguf_path

    is_shown, file = is_watched(as_json), gguf_path(what)
    with stage(f"reading {what}", is_shown, share_read(Path(what))):
        facts = None if file else _of_file(what)
    if gguf is not None and (file or facts is not None):
        raise FinemoeError(f"--gguf counts the experts of a model, and {what} is not a configuration; leave it out")
    if facts is not None:
        rows = [(_label(name), _text(name, value)) for name, value in facts.items()]
        print_json(facts) if as_json else print_table(what, rows)
        return
    with stage("counting and predicting", is_shown), measuring_noted():
        facts = _of_model(what, file, gguf, hardware, context)
    print_json(facts) if as_json else print_model(what, facts)


def _of_file(what: str) -> dict[str, Any] | None:
    """Facts about a trace or a store; None for anything else."""
    from finemoe.files import kind_of

    path = Path(what)
    kind = kind_of(path)
    if kind == "routing-trace" or path.suffix == ".trace":
        from finemoe.traces import RoutingTrace

        trace = RoutingTrace.load(path, mapped=True)
        of_trace = ("model", "num_requests", "num_rows", "num_layers", "num_experts", "top_k", "lookahead_strides")
        return {name: getattr(trace, name) for name in of_trace}
    if kind == "expert-map-store" or path.suffix == ".store":
        from finemoe.maps.store import ExpertMapStore

        store = ExpertMapStore.load(path)
        of_store = ("model", "num_layers", "num_experts", "embedding_dim", "capacity", "prefetch_distance", "nbytes")
        return {"records": len(store), **{name: getattr(store, name) for name in of_store}}
    return None


def _of_model(what: str, file: Path | None, mix: str | None, hardware: str | None, context: int) -> dict[str, Any]:
    source = str(file) if file else config_for(what)
    from finemoe.cli.gguf_facts import gguf_facts
    from finemoe.cli.model_facts import machine_facts, model_facts
    from finemoe.planning.loaded import loaded_models
    from finemoe.planning.place import described_place

    facts = gguf_facts(file) if file else model_facts(source, mix)
    place, is_timed = described_place(hardware)
    model = loaded_models(what, source, mix=mix, is_cuda=not place.is_cpu)[0]
    return facts | machine_facts(model, place, context, is_timed)


def _label(name: str) -> str:
    """A name of JSON in words."""
    return _LABELS.get(name, name.removesuffix("_bytes").replace("_", " "))


def _text(name: str, value: Any) -> str:
    """A value for people."""
    from finemoe.units import format_bytes

    if name.endswith("bytes"):
        return f"{value} ({format_bytes(value)})"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "\n".join(", ".join(f"{key} {item}" for key, item in one.items()) for one in value)
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else str(value)
