"""Ratios of rounds with their intervals, and what became of the bars."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from finemoe.intervals import Interval, bootstrap_median

from .subject import Bar, Measurement, Side, Subject

HOLDS, DOES_NOT, UNDECIDED = "holds", "does not hold", "not decided"


@dataclass(frozen=True)
class Finding:
    """What became of one bar.

    Attributes:
        above, below: medians over rounds, in the subject's unit; NaN for a mean of ratios.
        ratio: of the rounds' ratios, the median with its interval. verdict: "" without a limit.
    """

    subject: str
    bar: Bar
    above: float
    below: float
    unit: str
    ratio: Interval
    num_rounds: int
    verdict: str


def verdict_on(ratio: Interval, bar: Bar) -> str:
    """Whether the whole interval is on the bar's good side, or on its bad one; a single round decides nothing."""
    if bar.limit is None:
        return ""
    low, high = (-ratio.high, -ratio.low) if bar.is_floor else (ratio.low, ratio.high)
    limit = -bar.limit if bar.is_floor else bar.limit
    if np.isnan(low) or np.isnan(high):
        return UNDECIDED
    if high <= limit:
        return HOLDS
    return DOES_NOT if low > limit else UNDECIDED


def findings(subjects: Sequence[Subject], measured: Iterable[Measurement]) -> list[Finding]:
    """The bars of every subject that was measured, then the means over subjects."""
    series = _series(measured)
    found = [_of_bar(subject, bar, series) for subject in subjects for bar in subject.bars if _is_there(subject, bar, series)]
    return found + _means(subjects, series)


Series = dict[tuple[str, Side], np.ndarray]


def _series(measured: Iterable[Measurement]) -> Series:
    """The values of each side, by round."""
    by_side = defaultdict(list)
    for one in measured:
        by_side[one.subject, one.side].append((one.round, one.value))
    return {key: np.array([value for _, value in sorted(rounds)]) for key, rounds in by_side.items()}


def _is_there(subject: Subject, bar: Bar, series: Series) -> bool:
    return (subject.name, bar.above) in series and (subject.name, bar.below) in series


def _values(subject: Subject, bar: Bar, series: Series) -> tuple[np.ndarray, np.ndarray]:
    """Above and below, by round."""
    above, below = (series[subject.name, side] for side in (bar.above, bar.below))
    if not bar.beyond:
        return above, below
    bases = [series[subject.name, Side(side.tree, bar.beyond)] for side in (bar.above, bar.below)]
    return above - bases[0], below - bases[1]


def _ratios(subject: Subject, bar: Bar, series: Series) -> np.ndarray:
    """By round; NaN where there is nothing to divide by, as where a value is not beyond what it should be beyond."""
    above, below = _values(subject, bar, series)
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)


def _of_bar(subject: Subject, bar: Bar, series: Series) -> Finding:
    ratio = bootstrap_median(_ratios(subject, bar, series))
    values = _values(subject, bar, series)
    above, below = (float(np.median(one)) * subject.scale for one in values)
    return Finding(subject.name, bar, above, below, subject.unit, ratio, len(values[0]), verdict_on(ratio, bar))


def _means(subjects: Sequence[Subject], series: Series) -> list[Finding]:
    """Geometric means over subjects, round by round."""
    cells = defaultdict(list)
    for subject in subjects:
        for name, bar in subject.means.items():
            if _is_there(subject, bar, series):
                cells[name, bar].append(_ratios(subject, bar, series))
    found = []
    for (name, bar), ratios in cells.items():
        num_rounds = min(len(one) for one in ratios)
        means = np.exp(np.mean([np.log(one[:num_rounds]) for one in ratios], axis=0))
        ratio = bootstrap_median(means)
        title = f"{name} (geometric mean of {len(ratios)} cells)"
        found.append(Finding(title, bar, np.nan, np.nan, "", ratio, num_rounds, verdict_on(ratio, bar)))
    return found
