"""What stands for a command that a test cannot run as pasted: each way of checking, and the tests that do the rest.

`python -m tests.docs.coverage` lists every command of the documentation with the way it is checked.
"""

import ast
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import typer.main
from packaging.requirements import Requirement

from finemoe.artifact.pipeline.notebooks import NOTEBOOKS, known_notebooks
from finemoe.cli import app
from finemoe.paths import ROOT
from tests.docs.commands import Command, all_commands

RUN = "run as pasted"
# Blocks of `finemoe` that need what is not here (a hub, a file of 18 GB) or take longer than all others together, and the tests
# that do the same with what is here: a tiny model of the same family and format, a described machine.
ELSEWHERE = {
    r"finemoe info .*(Qwen3-30B|gpt-oss).*": ("tests/test_cli.py::test_info_names_the_format_and_the_memory_to_give",),
    r"finemoe info qwen3-30b.*": ("tests/cli/test_plan.py::test_info_without_a_measured_machine_predicts_nothing",),
    r"finemoe plan .*": ("tests/cli/test_plan.py::test_a_plan_in_words_and_as_json",),
    r"finemoe info .*\.gguf": ("tests/test_cli.py::test_info_on_a_gguf_file",),
    r"finemoe (run|record) .*\.gguf.*": ("tests/packed/test_gguf.py::test_every_file_at_every_size_of_the_cache",),
    r"finemoe run (?!.*FP8).*(Qwen1.5|Qwen3|gpt-oss|OLMoE|DeepSeek-V2).*": (
        "tests/published/test_answers.py::test_an_answer_is_transformers_own",
        "tests/published/test_answers.py::test_a_chat_keeps_its_cache_and_answers_as_without_one",
        "tests/published/test_answers.py::test_a_cached_snapshot_runs_by_its_name_offline",
    ),
    r"finemoe (run|record) .*(Qwen|openai|mistralai|microsoft)/.*": (
        "tests/packed/test_bit_equal.py::test_every_checkpoint_at_every_size_of_the_cache",
        "tests/test_cli.py::test_run_prints_text_and_a_table_of_counters",
    ),
    r"finemoe serve .*": ("tests/serving/test_serve_command.py::test_a_kill_and_a_restart_on_the_same_port",),
    r"finemoe advise .*--hardware here\b.*": ("tests/test_advise_command.py::test_a_link_of_ones_own",),
    r"finemoe advise .*gpt-oss-20b.*": ("tests/test_advise_command.py::test_json_is_one_object_with_every_part",),
    r"finemoe import .*": ("tests/test_import_command.py::test_a_table_becomes_a_trace",),
}
# What only a machine of another kind, an installation or much time can do; the rest of such a command is checked here.
BESIDE = {
    "make": ("tests/artifact/pipeline/test_snakefile.py::test_smoke_covers_every_rule_of_the_default_target",),
    "snakemake": (
        "tests/artifact/pipeline/test_snakefile.py::test_smoke_covers_every_rule_of_the_default_target",
        "tests/artifact/pipeline/test_snakefile.py::test_a_grid_of_cells_is_planned_for_a_slurm_cluster",
    ),
    "pip": ("tests/test_clean_install.py::test_what_is_found_by_name_comes_with_the_package",),
    "conda": ("tests/test_pins.py::test_conda_environment_has_the_pins_of_the_lock",),
    "jupyter": ("tests/test_notebooks.py::test_thin_and_explained",),
    "docker": ("tests/docs/test_dockerfile.py::test_it_runs_targets_that_exist",),
    "scripts/gpu_slice.sh": ("tests/artifact/gpu_bench/test_measure.py", "tests/artifact/gpu_bench/test_bench.py"),
}
SETTING_UP = ("cd", "export", "git", "source", "tar", "ls", "cat", "less", "open", "xdg-open")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLICK = typer.main.get_command(app)


def way_of(command: Command) -> str:
    """How a command is checked, in words.

    Raises:
        AssertionError: it is not, or what it names does not exist.
    """
    words = command.words
    program = Path(words[0]).name if words[0].startswith(".venv/bin/") else words[0]
    if program in SETTING_UP:
        return "sets up or looks at something"
    if program == "finemoe":
        return _finemoe(command)
    assert program in CHECKS, f"{command}: neither run by a test nor mapped to what covers it (tests/docs/coverage.py)"
    found = CHECKS[program](words[1:])
    for test in BESIDE.get(program, ()):
        assert_exists(test)
    return found


def assert_exists(test: str) -> None:
    """A test, or a file of tests, by its address."""
    path, _, name = test.partition("::")
    assert (ROOT / path).is_file(), f"{test}: no such file"
    if name:
        names = [node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.FunctionDef)]
        assert name in names, f"{test}: no such test"


def _finemoe(command: Command) -> str:
    options_are_known(command.words[1:])
    if runs_as_pasted(command):
        return RUN
    tests = _elsewhere(command)
    for test in tests:
        assert_exists(test)
    return "its options exist" + (f"; the same with what is here: {', '.join(tests)}" if tests else "")


def runs_as_pasted(command: Command) -> bool:
    """Whether `test_blocks_of_commands_run_as_pasted` runs it."""
    return command.in_block and command.words[0] == "finemoe" and not _elsewhere(command)


def _elsewhere(command: Command) -> tuple[str, ...]:
    """Tests that do the same with what is here."""
    return next((tests for pattern, tests in ELSEWHERE.items() if re.fullmatch(pattern, command.text)), ())


def options_are_known(words: Sequence[str]) -> None:
    """Of a command of `finemoe`: it exists, and so do its options."""
    names = [word for word in words if not word.startswith("-")]
    group = CLICK.commands  # type: ignore[attr-defined]
    if not names or names[0] not in group:
        assert set(words) <= {"--help", "--version"}, f"finemoe {' '.join(words)}: no such command; known: {', '.join(group)}"
        return
    known = {option for parameter in group[names[0]].params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words[1:]:
        if re.match(r"--?[a-z]", word):
            assert word.partition("=")[0] in known | {"--help"}, f"finemoe {names[0]}: no option {word}"


def _make(words: Sequence[str]) -> str:
    targets = [word for word in words if not re.match(r"[A-Z]+=|-", word)]
    assert targets, "make without a target"
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"make {' '.join(words)}: {done.stderr}"
    return "make -n"


def _snakemake(words: Sequence[str]) -> str:
    from snakemake.cli import get_argument_parser

    chosen, unknown = get_argument_parser().parse_known_args(list(words))
    assert not unknown, f"snakemake has no {unknown}"
    for path in chosen.configfile or []:
        assert (ROOT / path).is_file() or Path(path).name.startswith("mine"), path
    if chosen.workflow_profile:
        assert (ROOT / chosen.workflow_profile / "config.yaml").is_file(), chosen.workflow_profile
    rules = "\n".join(path.read_text() for path in [ROOT / "Snakefile", *sorted((ROOT / "rules").glob("*.smk"))])
    for target in chosen.targets:
        stem = Path(target).stem
        assert stem in known_notebooks() or re.search(rf"\b{re.escape(stem)}\b", rules), f"no rule {target}"
    return "its options, files and targets exist; dry runs in tests/artifact/pipeline/test_snakefile.py"


def _python(words: Sequence[str]) -> str:
    assert words[0] == "-m", f"python {' '.join(words)}"
    name, rest = words[1], words[2:]
    if name == "pytest":
        for word in rest:
            if word.startswith("tests/"):
                assert (ROOT / word.partition("::")[0]).exists(), word
        return "its tests exist and are part of this suite"
    if name in ("venv", "pip"):
        return "sets up an environment" if name == "venv" else _pip(rest)
    path = ROOT / name.replace(".", "/")
    sources = sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    assert all(source.is_file() for source in sources), f"no module {name}"
    assert sources, f"no module {name}"
    text = "\n".join(source.read_text(encoding="utf-8") for source in sources)
    assert (path / "__main__.py").is_file() or '__name__ == "__main__"' in text, f"{name} is not a program"
    for flag in (word.partition("=")[0] for word in rest if word.startswith("--")):
        assert f'"{flag}"' in text or f"{flag[2:].replace('-', '_')}:" in text, f"{name}: no option {flag}"
    return "the program and its options exist"


def _pip(words: Sequence[str]) -> str:
    assert words[0] == "install", words
    lock = {line.partition("==")[0].lower() for line in (ROOT / "requirements.lock").read_text().splitlines()}
    for before, word in pairwise(words):
        if before == "-r":
            assert (ROOT / word).is_file(), word
        elif word.startswith("-") or word in (".", "-e"):
            continue
        else:
            wanted = Requirement(word.replace(".[", "finemoe[", 1) if word.startswith(".[") else word)
            assert wanted.name == "finemoe" or wanted.name.lower() in lock, f"{word} is not pinned"
            assert wanted.extras <= set(PROJECT["optional-dependencies"]), word
    return "what it installs is declared or pinned"


def _conda(words: Sequence[str]) -> str:
    assert (ROOT / words[words.index("-f") + 1]).is_file() if "-f" in words else words[0] == "activate", words
    return "the environment's file exists and has the lock's pins"


def _jupyter(words: Sequence[str]) -> str:
    for word in words[1:]:
        path = ROOT / word
        assert path.is_file() or path == NOTEBOOKS, f"no notebook {word}"
    return "the notebook exists; executed by the pipeline"


def _docker(words: Sequence[str]) -> str:
    assert (ROOT / "Dockerfile").is_file()
    return "the Dockerfile is checked by tests/docs/test_dockerfile.py"


def _gpu_slice(words: Sequence[str]) -> str:
    script = (ROOT / "scripts" / "gpu_slice.sh").read_text()
    program = (ROOT / "finemoe" / "artifact" / "gpu_bench" / "__main__.py").read_text()
    for flag in (word for word in words if word.startswith("--")):
        assert flag in script or f'"{flag}"' in program or f"{flag[2:].replace('-', '_')}:" in program, flag
    return "its options exist; its parts run on pools of memory in tests/artifact/gpu_bench"


CHECKS: dict[str, Callable[[Sequence[str]], str]] = {
    "make": _make,
    "snakemake": _snakemake,
    "python": _python,
    "python3": _python,
    "pip": _pip,
    "conda": _conda,
    "jupyter": _jupyter,
    "docker": _docker,
    "scripts/gpu_slice.sh": _gpu_slice,
}


if __name__ == "__main__":
    for one in all_commands():
        print(one.page, shlex.join(one.words), way_of(one), sep="\t")
