"""Help pages: 80 columns, every option explained, and examples whose options exist."""

import inspect
import shlex

import pytest
import typer
from typer.testing import CliRunner

from finemoe.cli import app

COMMANDS = ["run", "record", "import", "replay", "advise", "info", "plan"]


def page(*arguments: str) -> str:
    return CliRunner().invoke(app, [*arguments, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).output


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_fits_and_shows_examples(command):
    text = page(command)
    assert max(map(len, text.splitlines())) <= 80
    assert "Examples:" in text
    assert f"finemoe {command} " in text.split("Examples:")[1]


def test_every_option_is_explained_and_in_a_panel():
    for command in typer.main.get_command(app).commands.values():
        for parameter in command.params:
            assert parameter.help, (command.name, parameter.name)
            assert parameter.help.endswith((".", "...")), parameter.help
            assert parameter.rich_help_panel or parameter.param_type_name == "argument", parameter.name


def test_examples_name_options_that_exist():
    group = typer.main.get_command(app)
    examples = [line for command in group.commands.values() for line in command.epilog.splitlines()[1:]]
    assert len(examples) >= 12
    for example in examples:
        program, name, *arguments = shlex.split(example)
        assert program == "finemoe"
        group.commands[name].make_context(name, arguments)  # parses, and refuses what it does not know
    assert inspect.cleandoc(page("run")) != ""
