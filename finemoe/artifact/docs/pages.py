"""Which pages have generated parts, and how they should read."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from finemoe.artifact.claims import to_markdown, to_sections
from finemoe.artifact.docs.generation import generation_blocks
from finemoe.artifact.docs.long_prompts import long_prompt_blocks
from finemoe.artifact.docs.marks import renewed_numbers
from finemoe.artifact.docs.numbers import all_numbers
from finemoe.artifact.docs.planning import planning_blocks
from finemoe.artifact.docs.plus import plus_blocks
from finemoe.artifact.docs.running import running_blocks
from finemoe.artifact.external.page import external_lines
from finemoe.artifact.machines import pages as machine_pages
from finemoe.artifact.machines.foretold import read_all_foretold
from finemoe.artifact.machines.measured import MEASURED, machines_in
from finemoe.artifact.markdown import with_blocks
from finemoe.paths import REFERENCE_FIGURES, ROOT

CLAIMS = REFERENCE_FIGURES / "claims.md"
_DOCS = ROOT / "docs"


def written_pages() -> list[Path]:
    """Markdown that people read: the README and its like, and docs/ without the copies made for the site."""
    named = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md")]
    return [path for path in named if path.is_file()] + sorted(_DOCS.glob("*.md")) + sorted((_DOCS / "api").glob("*.md"))


def renewed_pages(measured: Path = MEASURED) -> dict[Path, str]:
    """Every page as the shipped tables would have it, by path.

    Args:
        measured: the folder of machines that were measured.
    Raises:
        FinemoeError: a mark is unknown, wrong or missing; the message names the page and the line.
    """
    pages = {path: path.read_text(encoding="utf-8") for path in written_pages()}
    for path, texts in _blocks(measured).items():
        pages[path] = with_blocks(pages[path], texts)
    numbers = {name: number.text for name, number in all_numbers().items()}
    renewed = {path: renewed_numbers(text, numbers, str(path.relative_to(ROOT))) for path, text in pages.items()}
    return renewed | {CLAIMS: to_markdown(_claims(), _on_gpu(measured))}


def _blocks(measured: Path) -> dict[Path, Mapping[str, str]]:
    """Generated parts larger than a number, by page and name."""
    machines, cards = machines_in(measured), read_all_foretold(measured)
    return {
        ROOT / "data" / "README.md": {"external": external_lines()},
        _DOCS / "gpu.md": {
            "machines": machine_pages.machine_lines(machines, cards),
            "predictions": machine_pages.foretold_section(cards),
            "measurements": machine_pages.measured_section(machines),
        },
        _DOCS / "testbeds.md": {"simulator": machine_pages.simulator_lines(machines)},
        _DOCS / "claims.md": {"claims": to_sections(_claims(), _on_gpu(measured), _notebook_and_table)},
        _DOCS / "engine.md": long_prompt_blocks(),
        _DOCS / "finemoe_plus.md": plus_blocks(),
        _DOCS / "generation.md": generation_blocks(),
        _DOCS / "planning.md": planning_blocks(),
        _DOCS / "running.md": running_blocks(),
    }


def _claims() -> pd.DataFrame:
    return pd.read_csv(CLAIMS.with_suffix(".csv"), keep_default_na=False)


def _on_gpu(measured: Path) -> str:
    return machine_pages.claims_section(machines_in(measured))


def _notebook_and_table(stem: str) -> str:
    """Links of docs/claims.md, by the stem of a figure."""
    table = f"[{stem}.csv](../data/reference/figures/{stem}.csv)"
    return f"See [the notebook](../notebooks/figures/{stem}.ipynb) and the table {table}."
