"""`finemoe info`: what a model, a trace or a store is."""

from pathlib import Path
from typing import Annotated, Any

import typer

from finemoe.cli.configs import config_for
from finemoe.cli.messages import command
from finemoe.cli.options import INPUT, AsJson
from finemoe.cli.printing import print_json, print_table
from finemoe.cli.progress import is_watched, share_read, stage
from finemoe.errors import FinemoeError

_LABELS = {
    "num_requests": "requests",
    "num_rows": "tokens",
    "num_layers": "MoE layers",
    "num_experts": "experts per layer",
    "top_k": "experts per token",
    "experts_per_token": "experts per token",
    "expert_params": "parameters of one expert",
    "total_params": "parameters",
    "active_params": "parameters that one token uses",
    "expert_bytes": "one expert",
    "unpacked_expert_bytes": "one expert, unpacked",
    "recommended_expert_memory": "recommended --expert-memory",
    "recommended_expert_memory_bytes": "  in bytes",
    "recommended_slots": "  in experts",
    "lookahead_strides": "routers applied ahead, layers",
    "expert_share_of_bf16": "share of the size in bf16",
    "smallest_because": "  because it holds",
    "recommended_because": "  because it is",
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
    as_json: AsJson = False,
) -> None:
    """Describe a model, a trace file or an Expert Map Store.

    Of a model: its MoE geometry, how its experts are packed, and the expert memory to give it.
    """
    is_shown = is_watched(as_json)
    with stage(f"reading {what}", is_shown, share_read(Path(what))):
        facts = _of_file(what)
    if gguf is not None and facts is not None:
        raise FinemoeError(f"--gguf counts the experts of a model, and {what} is not a configuration; leave it out")
    with stage("importing PyTorch and Transformers", is_shown):
        facts = _of_model(what, gguf) if facts is None else facts
    print_json(facts) if as_json else print_table(what, [(_label(name), _text(name, value)) for name, value in facts.items()])


def _of_file(what: str) -> dict[str, Any] | None:
    """Facts about a trace, a store or a GGUF file; None for anything else."""
    from finemoe.files import kind_of
    from finemoe.runtime.gguf_names import gguf_path

    path = Path(what)
    if (file := gguf_path(what)) is not None:
        from finemoe.cli.gguf_facts import gguf_facts

        return gguf_facts(file)
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


def _of_model(what: str, mix: str | None) -> dict[str, Any]:
    source = config_for(what)
    from finemoe.cli.model_facts import model_facts

    return model_facts(source, mix)


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
