"""The command line: `finemoe run`, `record`, `import`, `replay`, `advise`, `info`. Commands parse, call the library, print."""

import sys
from io import TextIOWrapper
from typing import Annotated

import typer

from finemoe.cli.advise_command import advise
from finemoe.cli.import_command import import_
from finemoe.cli.info_command import info
from finemoe.cli.record_command import record
from finemoe.cli.replay_command import replay
from finemoe.cli.run_command import run
from finemoe.errors import one_line_for_bad_input

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
for command in (run, record, replay, advise, info):
    app.command()(command)
app.command("import")(import_)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(version("finemoe"))
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print it and end")] = False,
) -> None:
    """Mixture-of-Experts models whose experts do not fit on the device."""
    sys.excepthook = one_line_for_bad_input
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack characters of a name or a generated text
