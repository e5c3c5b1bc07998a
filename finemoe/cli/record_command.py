"""`finemoe record`: a model's routing over a prompt set, as a trace file."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from finemoe.cli.messages import Interrupted, command
from finemoe.cli.models import is_hub_id, require_model, require_source
from finemoe.cli.options import INPUT, NO_TEXTS, OUTPUT, AsJson, Model
from finemoe.cli.printing import print_json, print_table
from finemoe.cli.progress import compiling_shown, is_watched, stage
from finemoe.errors import FinemoeError

_NONE = list[int]()  # the default of a repeatable option
_DATASET = "questions"


@command
def record(
    model: Model,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The trace file to write.", rich_help_panel=OUTPUT)
    ],
    prompt: Annotated[
        list[str],
        typer.Option("--prompt", "-p", metavar="TEXT", help="A prompt, instead of a dataset. Repeatable.", rich_help_panel=INPUT),
    ] = NO_TEXTS,
    dataset: Annotated[
        str, typer.Option(metavar="NAME", help="questions, dialogues, a JSONL file, or a hub id.", rich_help_panel=INPUT)
    ] = _DATASET,
    column: Annotated[
        str, typer.Option(metavar="NAME", help="The column of the dataset with the prompts.", rich_help_panel=INPUT)
    ] = "prompt",
    limit: Annotated[
        int | None, typer.Option(help="Prompts to record. Default: all.", min=1, metavar="N", rich_help_panel=INPUT)
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Tokens to generate per prompt at most.", min=1, metavar="N", rich_help_panel=INPUT)
    ] = 64,
    batch_size: Annotated[
        int, typer.Option(help="Prompts to generate for together.", min=1, metavar="N", rich_help_panel=INPUT)
    ] = 8,
    lookahead: Annotated[
        list[int],
        typer.Option(
            help="Also apply the routers N layers ahead, ascending. Repeatable.", min=1, metavar="N", rich_help_panel=OUTPUT
        ),
    ] = _NONE,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            metavar="",
            help="Continue an interrupted recording, with the same options as before.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Record the routing of a model over a prompt set as a trace file.

    Ctrl-C keeps the finished requests; --resume records the rest.
    """
    from finemoe.files import require_place
    from finemoe.workloads import read_prompts

    is_shown, partial = is_watched(as_json), output.with_name(f"{output.stem}.partial{output.suffix}")
    require_place(output)
    require_model(model)
    if is_hub_id(dataset):
        require_source(dataset, "dataset")
    if prompt and (dataset != _DATASET or limit is not None):
        raise FinemoeError("--prompt and --dataset (or --limit) both name what is recorded; give one of them")
    prompts = _typed(prompt) if prompt else read_prompts(dataset, limit=limit, column=column)
    kept = _kept(partial, resume, [prompt["id"] for prompt in prompts])
    rest = prompts[0 if kept is None else kept.num_requests :]
    with stage("importing PyTorch and Transformers", is_shown):
        import finemoe
        from finemoe.runtime.joining import joined
        from finemoe.runtime.loading import load_model

    with stage(f"loading {model}", is_shown):
        module, tokenizer = load_model(model)
    with compiling_shown(is_shown):
        trace = finemoe.record(
            module,
            [prompt["prompt"] for prompt in rest],
            tokenizer=tokenizer,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            lookahead=lookahead,
            splits=[prompt["split"] for prompt in rest],
            request_ids=[prompt["id"] for prompt in rest],
            progress=is_shown,
            keep_interrupted=True,
        )
    trace = trace if kept is None else joined(kept, trace)
    if trace.num_requests < len(prompts):
        _save(trace, partial)
        raise Interrupted(
            f"{trace.num_requests} of {len(prompts)} requests are kept in {partial}; add --resume to record the rest"
        )
    _save(trace, output)
    partial.unlink(missing_ok=True)
    _print(trace, output, as_json)


def _typed(texts: list[str]) -> list[dict[str, str]]:
    """Prompts of the command line as rows of a prompt set."""
    return [{"id": f"prompt-{number}", "prompt": text, "split": "served"} for number, text in enumerate(texts)]


def _kept(partial: Path, resume: bool, ids: list[str]) -> Any:
    """The requests of an interrupted recording; None without one.

    Raises:
        FinemoeError: `--resume` has nothing to resume, is missing, or the prompts are others.
    """
    from finemoe.traces import RoutingTrace

    if not resume:
        if partial.exists():
            raise FinemoeError(f"{partial} holds an interrupted recording; add --resume to continue it, or remove the file")
        return None
    if not partial.exists():
        raise FinemoeError(f"{partial}: no such file; there is no interrupted recording to resume, leave --resume out")
    kept = RoutingTrace.load(partial)
    if list(kept.request_ids) != ids[: kept.num_requests]:
        raise FinemoeError(
            f"{partial}: recorded from other prompts; resume with the same --dataset and --limit, or remove the file"
        )
    return kept


def _save(trace: Any, path: Path) -> None:
    """Write the trace; if the disk is full, write it to the folder for temporary files instead of losing it.

    Raises:
        FinemoeError: it is there now, or cannot be written at all.
    """
    try:
        trace.save(path)
    except OSError as error:
        other = Path(tempfile.mkdtemp(prefix="finemoe-")) / path.name
        trace.save(other)
        raise FinemoeError(f"{path}: {error.strerror}; the recording is in {other}, move it from there") from error


def _print(trace: Any, output: Path, as_json: bool) -> None:
    facts = {
        "trace": str(output),
        "model": trace.model,
        "requests": trace.num_requests,
        "rows": trace.num_rows,
        "layers": trace.num_layers,
        "experts": trace.num_experts,
        "top_k": trace.top_k,
    }
    if as_json:
        print_json(facts)
        return
    names = {"rows": "tokens", "experts": "experts per layer", "top_k": "experts per token"}
    rows = [(names.get(name, name), f"{value:,}" if isinstance(value, int) else str(value)) for name, value in facts.items()]
    print_table("recorded", rows)
