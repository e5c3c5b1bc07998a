"""Warnings about what a trace is too short to show."""

import numpy as np

from finemoe.advice.sample import FEWEST_REQUESTS
from finemoe.advice.usage import decode_steps, growth
from finemoe.advice.verdict import Recommendation
from finemoe.simulation.curves import HitCurve
from finemoe.traces import RoutingTrace

_FEWEST_STEPS = 500
_MOST_GROWTH, _MOST_COLD, _WIDEST = 0.02, 0.2, 0.2


def warnings_of(trace: RoutingTrace, served: RoutingTrace, curve: HitCurve, advice: Recommendation | None) -> list[str]:
    """The warnings that apply, as sentences with numbers.

    Args:
        curve: of any rule; its largest cache holds everything, so its misses are first demands.
        advice: the recommendation, if there is one.
    """
    found = [_about_requests(served), _about_steps(trace), _about_growth(trace), _about_cold(curve, advice), _about_width(advice)]
    return [text for text in found if text]


def _about_requests(served: RoutingTrace) -> str:
    count = served.num_requests
    if count == 1:
        return "only one request was replayed, so there are no intervals over requests"
    return f"only {count} requests were replayed, too few for reliable intervals" if count < FEWEST_REQUESTS else ""


def _about_steps(trace: RoutingTrace) -> str:
    count = decode_steps(trace)
    if not count:
        return "the trace has no decode steps, so nothing is known about the time per token"
    steps = f"{count} decode step{'s' * (count != 1)}"
    text = f"the trace has only {steps}: caches are mostly cold and learning systems have learned little"
    return text if count < _FEWEST_STEPS else ""


def _about_growth(trace: RoutingTrace) -> str:
    share = growth(trace)
    if share <= _MOST_GROWTH:
        return ""
    return f"{share:.0%} of all experts used are first used in the last quarter of the trace: a longer run would use more"


def _about_cold(curve: HitCurve, advice: Recommendation | None) -> str:
    """Every cache misses first demands; if they are many of all misses, a longer run would have a better hit rate."""
    if advice is None:
        return ""
    first = float(curve.accesses.sum() - curve.hits[:, -1].sum())
    missed = float(curve.accesses.sum()) - float(np.interp(advice.slots, curve.slots, curve.hits.sum(axis=0)))
    if not missed or first / missed <= _MOST_COLD:
        return ""
    return f"{first / missed:.0%} of the misses at the recommended size are first uses, which no cache can avoid"


def _about_width(advice: Recommendation | None) -> str:
    if advice is None or not np.isfinite(advice.row["low"]):
        return ""
    width = (advice.row["high"] - advice.row["low"]) / advice.row["tpot_s"]
    return (
        f"the interval of the recommended time per token is {width:.0%} wide; a longer trace would narrow it"
        if width > _WIDEST
        else ""
    )
