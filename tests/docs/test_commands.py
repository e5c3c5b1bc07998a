"""Every command and every block of Python in the documentation works: run as pasted, or mapped to what covers it and checked.

Blocks run in a folder that looks like a checkout: its data, its tests' data, and a recorded trace where a page reads one.
"""

import gc
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import finemoe
from finemoe.artifact.docs.pages import written_pages
from finemoe.cli import app
from finemoe.paths import DATA, ROOT
from tests.docs.commands import Command, all_commands, blocks_of, commands_of, lines_of
from tests.docs.coverage import assert_exists, runs_as_pasted, way_of

pytestmark = pytest.mark.timeout(300)  # models are loaded and run

PAGES = {str(path.relative_to(ROOT)): path for path in written_pages()}
# Python that needs what is not here, and the tests that do the same with what is.
PYTHON_ELSEWHERE = {
    "docs/add_a_system.md": "tests/policies/test_outside.py::test_the_page_says_what_is_tested",
    "docs/packed_experts.md": "tests/packed/test_bit_equal.py::test_every_checkpoint_at_every_size_of_the_cache",
    "docs/serving.md": "tests/serving/test_answers.py::test_a_chat",
    "README.md": "tests/test_readme.py::test_its_python_runs_as_pasted",  # in a process of its own
}
# The same command with less work: what is recorded is read by the commands after it.
SHORTENED = {"--limit 24 --max-new-tokens 32": "--limit 8 --max-new-tokens 4"}
TRACE = "data/traces/qwen-mini-40x32.trace"


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A working folder with what commands read; what they write stays in it."""
    for name in ("data", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    for path in (ROOT / "tests" / "policies" / "outside").glob("*.py"):  # the files that the tutorial has a reader write
        shutil.copy(path, tmp_path)
    (tmp_path / "results" / "traces").mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "simulation" / "data" / "golden.trace", tmp_path / "TRACE")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def record_traces(folder: Path, command: Command) -> None:
    """Where a command reads what the pipeline recorded, two requests of that model, recorded now."""
    for word in command.words:
        if word.startswith("results/traces/") and not (folder / word).exists():
            model = next(name for name in ("mixtral-mini", "qwen-mini", "phi-mini") if name in word)
            options = ["--limit", "10", "--max-new-tokens", "2", "-o", word]
            done = CliRunner().invoke(app, ["record", "-m", model, *options])
            assert done.exit_code == 0, done.output


def shortened(command: Command) -> Command:
    """As pasted, but for how much a recording takes."""
    text = command.text
    for part, less in SHORTENED.items():
        text = text.replace(part, less)
    return replace(command, text=text)


@pytest.mark.parametrize("command", sorted(set(all_commands()), key=str), ids=str)
def test_every_command_is_run_or_covered(command):
    assert way_of(command)


@pytest.mark.parametrize("page", [name for name, path in PAGES.items() if any(map(runs_as_pasted, commands_of(path)))])
def test_blocks_of_commands_run_as_pasted(page, checkout):
    for command in commands_of(PAGES[page]):
        if runs_as_pasted(command):
            record_traces(checkout, command)
            done = CliRunner().invoke(app, shortened(command).words[1:])
            assert done.exit_code == 0, f"{command}\n{done.output}"


@pytest.mark.parametrize("page", [name for name, path in PAGES.items() if blocks_of(path, ("python",))])
def test_blocks_of_python_run_as_pasted(page, checkout):
    """In one session, in the order of the page."""
    if page in PYTHON_ELSEWHERE:
        assert_exists(PYTHON_ELSEWHERE[page])
        return
    session: dict[str, object] = {}
    try:
        for block in blocks_of(PAGES[page], ("python",)):
            exec(compile(block, page, "exec"), session)
    finally:
        for found in session.values():
            if isinstance(found, finemoe.Engine):
                found.close()
        session.clear()
        gc.collect()


def test_lines_of_a_block():
    block = "# first\nfinemoe run -p 'a # b' \\\n  --json   # why\n\nmake test\n"
    assert lines_of(block) == ["finemoe run -p 'a # b' --json", "make test"]
    assert lines_of("$ finemoe info x   # what\n12 layers\n$ make docs\n") == ["finemoe info x", "make docs"]


@pytest.mark.parametrize(
    "text",
    [
        "rm -rf everything",
        "make no-such-target",
        "finemoe replay TRACE --no-such-option",
        "finemoe rerun TRACE",
        "python -m finemoe.no_such_module",
        "python -m finemoe.artifact.docs --no-such-option",
        "python -m finemoe.units",
        "jupyter lab notebooks/no_such.ipynb",
        "snakemake --no-such-option",
        "snakemake --configfile config/no_such.yaml",
        "pip install no-such-package",
        "pip install '.[no-such-extra]'",
    ],
)
def test_a_command_that_cannot_work_is_noticed(text):
    with pytest.raises(AssertionError):
        way_of(Command("page.md", text, True))


def test_the_shipped_trace_is_what_pages_name():
    assert (DATA.parent / TRACE).is_file()
