"""What is written and printed of a comparison."""

import csv
from collections.abc import Iterable
from pathlib import Path

from .subject import Measurement
from .verdicts import Finding


def line_of(finding: Finding) -> str:
    """One finding in one line."""
    ratio, bar = finding.ratio, finding.bar
    values = f" = {finding.above:.4g} / {finding.below:.4g} {finding.unit}" if finding.unit else ""
    interval = f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
    verdict = f"  {bar}: {finding.verdict}" if finding.verdict else ""
    return f"{finding.subject}: {bar.above} / {bar.below}{values}: {interval} in {finding.num_rounds} rounds{verdict}"


def write(folder: Path, found: Iterable[Finding], measured: Iterable[Measurement], heading: str) -> None:
    """Write `rounds.csv` (every measurement), `ratios.csv` and `summary.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    found = list(found)
    with (folder / "rounds.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["subject", "round", "tree", "value_of", "value"])
        rows.writerows([one.subject, one.round, *one.side, one.value] for one in measured)
    with (folder / "ratios.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(
            [
                "subject",
                "above",
                "below",
                "above_median",
                "below_median",
                "unit",
                "ratio",
                "low",
                "high",
                "rounds",
                "bar",
                "verdict",
            ]
        )
        for one in found:
            medians = one.above, one.below, one.unit
            rows.writerow([one.subject, one.bar.above, one.bar.below, *medians, *one.ratio, one.num_rounds, one.bar, one.verdict])
    (folder / "summary.txt").write_text("\n".join([heading, *map(line_of, found)]) + "\n", encoding="utf-8")
