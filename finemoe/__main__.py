"""`python -m finemoe` is the command `finemoe`."""

from finemoe.cli import app

app(prog_name="finemoe")
