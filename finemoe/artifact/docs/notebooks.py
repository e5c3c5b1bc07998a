"""The notebooks as the documentation's site shows them: executed where the pipeline has run, else as committed.

Sphinx reads sources below docs/ only and never executes anything, so each notebook is copied there first, with a note on where
its outputs come from. The copies are not under version control.
"""

import json
from pathlib import Path
from typing import Any

from finemoe.artifact.pipeline.notebooks import known_notebooks
from finemoe.files import write_text
from finemoe.paths import RESULTS, ROOT

PAGES = ROOT / "docs" / "notebooks"


def stage_notebooks(executed: Path = RESULTS / "notebooks", pages: Path = PAGES) -> dict[str, Path]:
    """Copy every notebook below the documentation's sources; returns where each was taken from, by name.

    Args:
        executed: what the pipeline wrote, `NAME.ipynb` or, for a notebook that runs once per model, `NAME/**/*.ipynb`.
        pages: the folder to fill, with the folders of `notebooks/` in it; notebooks that no longer exist are removed.
    """
    taken, written = {}, set()
    for name, source in known_notebooks().items():
        run = executed_run(name, executed)
        page = pages / source.parent.name / f"{name}.ipynb"
        text = json.dumps(annotated(run or source, source, executed if run else None), indent=1, ensure_ascii=False) + "\n"
        if not page.is_file() or page.read_text(encoding="utf-8") != text:  # an unchanged page is not built again
            page.parent.mkdir(parents=True, exist_ok=True)
            write_text(page, text)
        written.add(page)
        taken[name] = run or source
    for stale in set(pages.glob("*/*.ipynb")) - written:
        stale.unlink()
    return taken


def executed_run(name: str, executed: Path) -> Path | None:
    """The run that stands for a notebook: its only one, or the first of several; None where the pipeline has not run it."""
    single = executed / f"{name}.ipynb"
    runs = [single] if single.is_file() else sorted((executed / name).glob("**/*.ipynb"))
    return next((run for run in runs if is_finished(run)), None)


def is_finished(run: Path) -> bool:
    """Whether papermill wrote a whole notebook without an exception in it."""
    try:
        metadata = json.loads(run.read_text(encoding="utf-8"))["metadata"]
    except (OSError, ValueError, KeyError):
        return False
    return metadata.get("papermill", {}).get("exception") is None


def annotated(shown: Path, source: Path, executed: Path | None) -> dict[str, Any]:
    """A notebook's content with a note under its title: what was run, and how to run it."""
    notebook: dict[str, Any] = json.loads(shown.read_text(encoding="utf-8"))
    name = source.relative_to(ROOT)
    if executed is None:
        note = f"Source: `{name}`. Not executed: run `make reproduce`, then `make docs` shows the outputs."
    else:
        part = shown.relative_to(executed).with_suffix("")
        which = f" One run of several: `{part}`." if part.parent != Path(".") else ""
        note = f"Source: `{name}`, executed by the pipeline.{which} Parameters of that run are in the cell that sets them."
    cell: dict[str, Any] = {"cell_type": "markdown", "metadata": {}, "source": note}
    if notebook.get("nbformat_minor", 0) >= 5:
        cell["id"] = "where-from"
    notebook["cells"].insert(1, cell)
    for one in notebook["cells"]:
        if one["cell_type"] == "code":
            one["outputs"] = [shown_output(output) for output in one["outputs"] if is_readable(output)]
    notebook["metadata"].pop("widgets", None)
    return notebook


def is_readable(output: dict[str, Any]) -> bool:
    """Whether a page can show an output; a widget needs a running kernel, and a page without network has no script for it."""
    return not any(kind.startswith("application/vnd.jupyter.widget") for kind in output.get("data", {}))


def shown_output(output: dict[str, Any]) -> dict[str, Any]:
    """An output without the times that Jupyter keeps with it, which differ from run to run."""
    return {key: value for key, value in output.items() if key != "metadata"} | ({"metadata": {}} if "metadata" in output else {})
