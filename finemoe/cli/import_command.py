"""`finemoe import`: routing that another program recorded, as a trace file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from finemoe.cli.options import AsJson
from finemoe.cli.printing import print_json, print_table


def import_(
    file: Annotated[Path, typer.Argument(help="what another program recorded, gzipped or not (docs/importing.md)")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the trace file to write")],
    format: Annotated[str | None, typer.Option(help="the file's format; default: found by its content")] = None,
    num_experts: Annotated[int | None, typer.Option("--experts", help="experts a layer, where the file lacks it", min=1)] = None,
    num_layers: Annotated[int | None, typer.Option("--layers", help="MoE layers, where the file lacks it", min=1)] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="experts a token, where the file lacks it", min=1)] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(help="tokens of every request's prompt, where the file lacks it", min=0)
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="the model's name; of data/models/configs or a file also its sizes")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Turn routing that another program recorded into a trace file."""
    from finemoe.files import require_place
    from finemoe.importers import Options, import_trace

    require_place(output)
    found = import_trace(file, format, Options(num_experts, num_layers, top_k, prompt_tokens, model))
    found.trace.save(output)
    facts = {"file": str(file), "trace": str(output), **_facts(found)}
    if as_json:
        print_json(facts)
        return
    print_table("imported", [(key, _text(value)) for key, value in facts.items() if value not in ("", [])])


def _facts(found: Any) -> dict[str, Any]:
    """What was read."""
    from finemoe.traces import PREFILL

    trace = found.trace
    num_prefill = int((trace.phase == PREFILL).sum())
    return {
        "format": found.format,
        "model": trace.model,
        "requests": trace.num_requests,
        "rows": trace.num_rows,
        "prefill_rows": num_prefill,
        "decode_rows": trace.num_rows - num_prefill,
        "layers": trace.num_layers,
        "experts": trace.num_experts,
        "experts_from": found.experts_from,
        "top_k": trace.top_k,
        "has_weights": trace.has_weights,
        "expert_bytes": list(trace.expert_bytes),
        "notes": list(found.notes),
    }


def _text(value: Any) -> str:
    """A value for people."""
    if isinstance(value, list):
        return "\n".join(value) if value and isinstance(value[0], str) else _sizes(value)
    return str(value)


def _sizes(sizes: list[int]) -> str:
    """Bytes of one expert, layer by layer, or of all where they are equal."""
    from finemoe.units import format_bytes

    if len(set(sizes)) == 1:
        return f"{sizes[0]} ({format_bytes(sizes[0])}) in every layer"
    return ", ".join(map(str, sizes))
