"""`finemoe info`: what a model, a trace or a store is."""

from pathlib import Path
from typing import Annotated, Any

import typer

from finemoe.cli.options import AsJson
from finemoe.cli.printing import print_json, print_table


def info(
    what: Annotated[str, typer.Argument(help="a miniature's name, a model folder, config.json, hub id, trace or store file")],
    as_json: AsJson = False,
) -> None:
    """Describe a model's MoE geometry, a routing trace, or an Expert Map Store."""
    facts = _describe(what)
    print_json(facts) if as_json else print_table(what, [(key, str(value)) for key, value in facts.items()])


def _describe(what: str) -> dict[str, Any]:
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
    from dataclasses import asdict

    from finemoe.models.geometry import Geometry
    from finemoe.models.shipped import resolve

    return asdict(Geometry.from_config(resolve(what)))
