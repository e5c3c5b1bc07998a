"""`finemoe import`: routing that another program recorded, as a trace file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from finemoe.cli.messages import command
from finemoe.cli.options import INPUT, OUTPUT, AsJson
from finemoe.cli.printing import print_json, print_table
from finemoe.cli.progress import is_watched, share_read, stage

_LABELS = {
    "rows": "tokens",
    "prefill_rows": "tokens of prompts",
    "decode_rows": "generated tokens",
    "experts": "experts per layer",
    "experts_from": "experts per layer are",
    "top_k": "experts per token",
    "has_weights": "gate weights",
    "expert_bytes": "size of an expert",
}


@command
def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The recording of another program, gzipped or not (docs/importing.md).")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The trace file to write.", rich_help_panel=OUTPUT)
    ],
    format: Annotated[
        str | None, typer.Option(metavar="NAME", help="Format of FILE. Default: found by its content.", rich_help_panel=INPUT)
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="The model, whose sizes are then known: a name or a file.",
            rich_help_panel=INPUT,
        ),
    ] = "",
    num_layers: Annotated[
        int | None, typer.Option("--layers", help="MoE layers, if FILE lacks them.", min=1, metavar="N", rich_help_panel=INPUT)
    ] = None,
    num_experts: Annotated[
        int | None,
        typer.Option("--experts", help="Experts per layer, if FILE lacks them.", min=1, metavar="N", rich_help_panel=INPUT),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", help="Experts per token, if FILE lacks them.", min=1, metavar="N", rich_help_panel=INPUT),
    ] = None,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens of every prompt, if FILE lacks them.", min=0, metavar="N", rich_help_panel=INPUT),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert routing that another program recorded into a trace file."""
    from finemoe.files import require_place

    is_shown = is_watched(as_json)
    require_place(output)
    with stage("importing NumPy", is_shown):
        from finemoe.importers import Options, import_trace

    with stage(f"reading {file}", is_shown, share_read(file)):
        found = import_trace(file, format, Options(num_experts, num_layers, top_k, prompt_tokens, model))
    with stage(f"writing {output}", is_shown):
        found.trace.save(output)
    facts = {"file": str(file), "trace": str(output), **_facts(found)}
    if as_json:
        print_json(facts)
        return
    rows = [(_LABELS.get(key, key), _text(value)) for key, value in facts.items() if value not in ("", [])]
    print_table("imported", rows)


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
    if isinstance(value, bool):
        return "recorded" if value else "not recorded"
    if isinstance(value, list):
        return "\n".join(value) if value and isinstance(value[0], str) else _sizes(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _sizes(sizes: list[int]) -> str:
    """Bytes of one expert, layer by layer, or of all where they are equal."""
    from finemoe.units import format_bytes

    if len(set(sizes)) == 1:
        return f"{sizes[0]} ({format_bytes(sizes[0])}) in every layer"
    return ", ".join(map(str, sizes))
