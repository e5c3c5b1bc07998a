"""Make `python -m finemoe` run the `finemoe` command."""

from finemoe.cli import app

app(prog_name="finemoe")
