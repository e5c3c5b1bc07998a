"""`finemoe info`: what a model, a trace or a store is."""

from pathlib import Path
from typing import Annotated, Any

import typer

from finemoe.cli.options import AsJson
from finemoe.cli.printing import print_json, print_table
from finemoe.errors import FinemoeError


def info(
    what: Annotated[
        str, typer.Argument(help="a miniature's name, a model folder, config.json, .gguf file, hub id, trace or store file")
    ],
    gguf: Annotated[
        str | None, typer.Option(help="of a model: count its experts as in a GGUF file of this mix (Q4_K_M, Q8_0, ...)")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Describe a model (its MoE geometry, how its experts are packed, and the expert memory to give it), a routing trace, or an
    Expert Map Store."""
    facts = _of_file(what)
    if gguf is not None and facts is not None:
        raise FinemoeError(f"--gguf says how to count a model's experts, and {what} is no configuration; leave it out")
    facts = _of_model(what, gguf) if facts is None else facts
    print_json(facts) if as_json else print_table(what, [(name, _text(name, value)) for name, value in facts.items()])


def _of_file(what: str) -> dict[str, Any] | None:
    """Of a trace, a store or a GGUF file; None if it is none of them."""
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
    from finemoe.cli.model_facts import model_facts
    from finemoe.models.shipped import resolve

    return model_facts(resolve(what), mix)


def _text(name: str, value: Any) -> str:
    """A value for people."""
    from finemoe.units import format_bytes

    if name.endswith("_bytes"):
        return f"{value} ({format_bytes(value)})"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "\n".join(", ".join(f"{key} {item}" for key, item in one.items()) for one in value)
    return str(value)
