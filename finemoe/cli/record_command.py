"""`finemoe record`: a model's routing over a prompt set, as a trace file."""

from pathlib import Path
from typing import Annotated

import typer

from finemoe.cli.options import AsJson, Model
from finemoe.cli.printing import print_json, print_table

_NONE = list[int]()  # the default of an option that may be given several times


def record(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="the trace file to write")],
    dataset: Annotated[str, typer.Option(help="an embedded prompt set, a JSONL file, or a hub id")] = "questions",
    column: Annotated[str, typer.Option(help="where the dataset holds the prompt's text")] = "prompt",
    limit: Annotated[int | None, typer.Option(help="how many prompts", min=1)] = None,
    max_new_tokens: Annotated[int, typer.Option(help="tokens to generate per prompt", min=1)] = 64,
    batch_size: Annotated[int, typer.Option(help="requests side by side", min=1)] = 8,
    lookahead: Annotated[
        list[int], typer.Option(help="also record routers applied so many layers ahead; again for more", min=1)
    ] = _NONE,
    as_json: AsJson = False,
) -> None:
    """Record the routing of a model over a prompt set as a trace file."""
    import finemoe
    from finemoe.files import require_place
    from finemoe.runtime.loading import load_model
    from finemoe.workloads import read_prompts

    require_place(output)
    prompts = read_prompts(dataset, limit=limit, column=column)
    module, tokenizer = load_model(model)
    trace = finemoe.record(
        module,
        [prompt["prompt"] for prompt in prompts],
        tokenizer=tokenizer,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        lookahead=lookahead,
        splits=[prompt["split"] for prompt in prompts],
        request_ids=[prompt["id"] for prompt in prompts],
        progress=not as_json,
    )
    trace.save(output)
    facts = {
        "trace": str(output),
        "model": trace.model,
        "requests": trace.num_requests,
        "rows": trace.num_rows,
        "layers": trace.num_layers,
        "experts": trace.num_experts,
        "top_k": trace.top_k,
    }
    print_json(facts) if as_json else print_table("recorded", [(key, str(value)) for key, value in facts.items()])
