"""What is written and printed of a comparison."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .subject import Measurement
from .verdicts import DOES_NOT, HOLDS, UNDECIDED, Finding

_ROUNDS = ("subject", "round", "tree", "value_of", "value")
_RATIOS = ("subject", "above", "below", "beyond", "above_median", "below_median", "unit", "ratio", "low", "high", "rounds")


def line_of(finding: Finding) -> str:
    """One finding in one line."""
    ratio, bar = finding.ratio, finding.bar
    values = f" = {finding.above:.4g} / {finding.below:.4g} {finding.unit}" if finding.unit else ""
    interval = f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
    verdict = f"  {bar}: {finding.verdict}" if finding.verdict else ""
    return f"{finding.subject}: {bar.title}{values}: {interval} in {finding.num_rounds} rounds{verdict}"


def write(folder: Path, found: Sequence[Finding], measured: Iterable[Measurement], heading: str) -> None:
    """Write `rounds.csv` (every measurement), `ratios.csv` and `summary.txt`, whose last line counts the verdicts."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_rows(folder / "rounds.csv", [_ROUNDS, *([one.subject, one.round, *one.side, one.value] for one in measured)])
    _write_rows(folder / "ratios.csv", [(*_RATIOS, "bar", "verdict"), *map(_row_of, found)])
    lines = [heading, *map(line_of, found), counts_of(found)]
    (folder / "summary.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def counts_of(found: Iterable[Finding]) -> str:
    """How many bars hold, do not, and are not decided."""
    verdicts = [one.verdict for one in found]
    return ", ".join(f"{verdict}: {verdicts.count(verdict)}" for verdict in (HOLDS, DOES_NOT, UNDECIDED))


def _row_of(one: Finding) -> list[Any]:
    sides = one.bar.above, one.bar.below, one.bar.beyond
    return [one.subject, *sides, one.above, one.below, one.unit, *one.ratio, one.num_rounds, one.bar, one.verdict]


def _write_rows(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
