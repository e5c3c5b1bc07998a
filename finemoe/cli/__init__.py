"""The command line: `finemoe run`, `serve`, `record`, `import`, `replay`, `advise`, `info`, `plan`."""

import sys
from io import TextIOWrapper
from typing import Annotated

import typer

from finemoe.cli.advise_command import advise
from finemoe.cli.import_command import import_
from finemoe.cli.info_command import info
from finemoe.cli.options import examples
from finemoe.cli.plan_command import plan
from finemoe.cli.record_command import record
from finemoe.cli.replay_command import replay
from finemoe.cli.run_command import run
from finemoe.cli.serve_command import serve
from finemoe.errors import one_line_for_bad_input

_EPILOGUE = examples(
    'finemoe run -m mixtral-mini -p "Why is the sea salty?"',
    "finemoe serve mixtral-mini",
    "finemoe record -m qwen-mini -o routing.trace --limit 40",
    "finemoe replay routing.trace --compare --hardware rtx3090",
    "finemoe COMMAND --help",
)
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, epilog=_EPILOGUE)
app.command(
    epilog=examples(
        'finemoe run -m mixtral-mini -p "Why is the sea salty?"',
        'finemoe run -m Qwen/Qwen3-30B-A3B -p "Hello" --expert-memory 6GiB',
        "finemoe run -m openai/gpt-oss-20b --chat --profile gpt-oss.profile",
        'finemoe run -m qwen-mini -p "Hello" --policy finemoe --option semantic=false',
    )
)(run)
app.command(
    epilog=examples(
        "finemoe record -m mixtral-mini -o routing.trace --limit 40",
        "finemoe record -m qwen-mini -o a.trace --dataset prompts.jsonl --lookahead 1",
        'finemoe record -m mixtral-mini -o a.trace -p "Why is the sea salty?"',
    )
)(record)
app.command(
    "import",
    epilog=examples(
        "finemoe import routing.csv -o routing.trace",
        "finemoe import answers.jsonl -o a.trace --layers 32 --experts 8 --top-k 2",
    ),
)(import_)
app.command(
    epilog=examples(
        "finemoe replay routing.trace --split --policy finemoe --policy promoe",
        "finemoe replay routing.trace --compare --figure systems",
        "finemoe replay a.trace --compare --hardware laptop-8gb --expert-memory 2GB",
        "finemoe replay a.trace --policy finemoe --option semantic=false",
    )
)(replay)
app.command(
    epilog=examples(
        "finemoe advise routing.trace --hardware laptop-8gb",
        "finemoe advise a.trace --hardware here --expert-memory 6GiB --page a.html",
    )
)(advise)
app.command(
    epilog=examples("finemoe info mixtral-mini", "finemoe info routing.trace --json", "finemoe info config.json --gguf Q4_K_M")
)(info)
app.command(
    epilog=examples(
        "finemoe plan Qwen/Qwen3-30B-A3B --hardware laptop-8gb --host-memory 32GiB",
        "finemoe plan openai/gpt-oss-20b --memory 8GiB",
        "finemoe plan mixtral-mini --memory 8MiB --context 512 --link paced:20MB/s --trace routing.trace",
    )
)(plan)
app.command(epilog=examples("finemoe serve mixtral-mini", "finemoe serve Qwen/Qwen3-30B-A3B --expert-memory 6GiB --port 8080"))(
    serve
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(version("finemoe"))
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", metavar="", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Run Mixture-of-Experts models whose experts do not fit on the device, and study their routing."""
    sys.excepthook = one_line_for_bad_input
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack characters of a name or a generated text
