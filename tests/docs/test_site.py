"""The site: built without a warning, readable as files without a network, with every notebook in it."""

import json
import os
import re
import subprocess
import sys

import pytest

from finemoe.artifact.docs.notebooks import annotated, executed_run, stage_notebooks
from finemoe.artifact.pipeline.notebooks import known_notebooks
from finemoe.paths import ROOT

pytestmark = pytest.mark.timeout(300)  # Sphinx imports the package and renders every notebook

EXTERNAL = re.compile(r'<(?:script|img|link|iframe)[^>]*(?:src|href)="(?:https?:)?//')


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built as `make docs` does; warnings are errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", str(folder / "doctrees")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "docs", str(folder / "html")], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "html"


def test_pages_need_no_network(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        assert not EXTERNAL.search(page.read_text(encoding="utf-8")), page


def test_marks_are_invisible(site):
    for page in site.rglob("*.html"):
        text = re.sub(r"<(code|pre)\b.*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert "&lt;!--" not in text, page


def test_every_notebook_has_a_page(site):
    for name, path in known_notebooks().items():
        assert (site / "notebooks" / path.parent.name / f"{name}.html").is_file(), name


def test_public_names_are_documented(site):
    text = "".join(page.read_text(encoding="utf-8") for page in (site / "api").glob("*.html"))
    for name in (
        "offload",
        "load",
        "Engine",
        "record",
        "replay",
        "advise",
        "RoutingTrace",
        "register_policy",
        "register_eviction",
    ):
        assert f'id="finemoe.{name}"' in text, name


def fake_run(path, exception=None, outputs=()):
    """An executed notebook as papermill leaves it."""
    cells = [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# Title"},
        {"cell_type": "code", "id": "b", "metadata": {}, "source": "1", "execution_count": 1, "outputs": list(outputs)},
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"papermill": {"exception": exception}, "widgets": {"state": {}}}
    path.write_text(json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))
    return path


def test_runs_of_the_pipeline_are_shown_and_failed_ones_are_not(tmp_path):
    one = fake_run(tmp_path / "f4.ipynb")
    several = fake_run(tmp_path / "profile_models" / "mixtral-mini-questions.ipynb")
    fake_run(tmp_path / "profile_models" / "qwen-mini-questions.ipynb")
    fake_run(tmp_path / "t1.ipynb", exception=True)
    (tmp_path / "f8.ipynb").write_text("{")
    assert executed_run("f4", tmp_path) == one
    assert executed_run("profile_models", tmp_path) == several
    assert executed_run("t1", tmp_path) is executed_run("f8", tmp_path) is executed_run("f9", tmp_path) is None


def test_copies_say_where_their_outputs_come_from(tmp_path):
    source = known_notebooks()["profile_models"]
    widget = {"output_type": "display_data", "data": {"application/vnd.jupyter.widget-view+json": {}}, "metadata": {}}
    text = {"output_type": "stream", "name": "stdout", "text": "shown"}
    run = fake_run(tmp_path / "profile_models" / "qwen-mini-questions.ipynb", outputs=[widget, text])
    shown = annotated(run, source, tmp_path)
    assert shown["cells"][1]["source"].startswith("Source: `notebooks/stages/1_profile_models.ipynb`, executed by the pipeline.")
    assert "One run of several: `profile_models/qwen-mini-questions`." in shown["cells"][1]["source"]
    assert shown["cells"][2]["outputs"] == [text]
    assert "widgets" not in shown["metadata"]
    assert "Not executed" in annotated(source, source, None)["cells"][1]["source"]


def test_copies_of_notebooks_that_are_gone_are_removed(tmp_path):
    stale = fake_run(tmp_path / "pages" / "figures" / "gone.ipynb")
    taken = stage_notebooks(tmp_path / "none", tmp_path / "pages")
    assert not stale.exists()
    assert taken == known_notebooks()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "pages").rglob("*.ipynb")}
    stage_notebooks(tmp_path / "none", tmp_path / "pages")
    assert {path: path.stat().st_mtime_ns for path in before} == before  # Sphinx reads only what changed
