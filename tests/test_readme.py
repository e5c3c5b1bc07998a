"""The README is short, and what it shows is what a reader gets: its Python runs as pasted and prints what is shown below it."""

import os
import re
import subprocess
import sys

from finemoe.paths import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
MOST_WORDS = 900


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def shapes(text: str) -> list[str]:
    """Lines without their numbers and spacing: times and counts differ from machine to machine."""
    return [" ".join(re.sub(r"\d[\d.,]*", "#", line).split()) for line in text.splitlines() if line.strip()]


def test_it_is_short_and_has_a_figure():
    words = re.sub(r"<!--.*?-->", "", TEXT, flags=re.DOTALL).split()
    assert len(words) <= MOST_WORDS
    assert re.search(r"^!\[[^]]+\]\(docs/images/\w+\.svg\)$", TEXT, re.MULTILINE)


def test_its_python_runs_as_pasted(tmp_path):
    """In one session, where the repository is: here a folder with its data and nothing else, which stays as it was."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks("python"))],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Why is the sea salty?" in done.stdout
    assert "hit rate" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    after_python = TEXT[TEXT.index("```python") :]
    shown = re.search(r"^```text\n(.*?)^```$", after_python, re.MULTILINE | re.DOTALL)
    assert shown, "the README shows no output of its example"
    printed = shapes(done.stdout)
    missing = [line for line in shapes(shown[1]) if line not in printed]
    assert not missing, f"not printed: {missing}; printed: {printed}"
