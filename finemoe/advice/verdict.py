"""Conclusions from the numbers: where hit rates break down, how much memory pays, and whether prefetching does."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from finemoe.advice.sample import FEWEST_REQUESTS
from finemoe.advice.systems import LIMITS, ON_DEMAND, ORACLE, PREFETCHING, RESIDENT
from finemoe.advice.timing import Reports, time_ratio
from finemoe.simulation.curves import HitCurve

WITHIN = 1.10  # relative to the shortest time; a smaller gain is not worth more memory
_SIMPLER_WITHIN = 1.02  # a prefetching system must gain more than this to be recommended over the simpler one
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Recommendation:
    """How much expert memory to use, and which system.

    Attributes:
        system, slots, row: the recommendation, and its timed row (`time_rows`). best: the row of the fastest system that fits.
        on_demand, prefetching: the fastest of each kind at the recommended size; prefetching is None if the trace can drive none.
        limited_by_room: whether more memory than the machine has would be more than 10 % faster.
    """

    system: str
    slots: int
    row: Row
    best: Row
    on_demand: Row
    prefetching: Row | None
    limited_by_room: bool

    def to_dict(self) -> dict[str, Any]:
        """The recommendation as plain types, ready for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def recommended(rows: Sequence[Row]) -> Recommendation | None:
    """Recommend the smallest size at which some system takes at most 10 % longer than the fastest that fits, and the fastest
    system at that size. If prefetching gains less than 2 % there, recommend the fastest on-demand system, provided that it is
    also within the 10 %. None if nothing fits."""
    real = [row for row in rows if row["system"] not in LIMITS and np.isfinite(row["tpot_s"])]
    if not (fitting := [row for row in real if row["fits"]]):
        return None
    best = _fastest(fitting)
    slots = min(row["slots"] for row in fitting if row["tpot_s"] <= WITHIN * best["tpot_s"])
    here = [row for row in fitting if row["slots"] == slots]
    on_demand = _fastest(row for row in here if row["system"] in ON_DEMAND)
    ahead = [row for row in here if row["system"] in PREFETCHING]
    prefetching = _fastest(ahead) if ahead else None
    most_s = min(WITHIN * best["tpot_s"], np.inf if prefetching is None else _SIMPLER_WITHIN * prefetching["tpot_s"])
    row = on_demand if prefetching is None or on_demand["tpot_s"] <= most_s else prefetching
    limited = min(one["tpot_s"] for one in real) * WITHIN < best["tpot_s"]
    return Recommendation(row["system"], slots, row, best, on_demand, prefetching, limited)


def prefetch_rows(rows: Sequence[Row], reports: Reports, seed: int = 0) -> list[dict[str, Any]]:
    """The benefit of prefetching at every size: the fastest prefetching system over the fastest on-demand system.

    Returns:
        Rows (slots, expert_memory, on_demand, prefetching, ratio, low, high, verdict): ratio of decode times of the same requests
        with its 95 % interval over requests; verdict is "pays" or "costs" if the interval is entirely below or above 1, "makes no
        difference" if it is within 2 % of 1, otherwise "cannot be told", as with fewer than 5 requests.
    """
    found = []
    for slots in sorted({row["slots"] for row in rows}):
        here = [row for row in rows if row["slots"] == slots]
        ahead = [row for row in here if row["system"] in PREFETCHING]
        if not ahead:
            continue
        on_demand, prefetching = _fastest(row for row in here if row["system"] in ON_DEMAND), _fastest(ahead)
        names = (prefetching["system"], on_demand["system"])
        interval = time_ratio(reports[names[0], slots], reports[names[1], slots], seed)
        ratio, low, high = (float(value) for value in interval)
        found.append(
            {
                "slots": slots,
                "expert_memory": on_demand["expert_memory"],
                "on_demand": names[1],
                "prefetching": names[0],
                "ratio": ratio,
                "low": low,
                "high": high,
                "verdict": _verdict(low, high, len(reports[names[0], slots].requests)),
            }
        )
    return found


def cliff(curve: HitCurve, num_layers: int, top_k: int) -> dict[str, Any]:
    """Where LRU begins to hit: at one token's cycle, because a layer's experts are reused only after all other layers have run.

    Returns:
        cycle: L·K slots; hit_rate_at: LRU's hit rate with that many; hit_rate_before: with the slots of one layer less, K fewer;
        0 if none are left.
    """
    cycle = num_layers * top_k
    at, before = (float(np.interp(size, curve.slots, curve.hit_rates, left=0.0)) for size in (cycle, cycle - top_k))
    return {"cycle": cycle, "hit_rate_at": at, "hit_rate_before": before}


def knee(curve: HitCurve, slots: np.ndarray) -> int:
    """The size beyond which the curve is flatter than on average: where it is highest above the line between its ends (Satopää et
    al., Finding a "kneedle" in a haystack, 2011).

    Args:
        slots: the sizes to consider; the curve may have others.
    """
    is_considered = np.isin(curve.slots, slots)
    sizes, rates = curve.slots[is_considered], curve.hit_rates[is_considered]
    line = rates[0] + (rates[-1] - rates[0]) * (sizes - sizes[0]) / max(sizes[-1] - sizes[0], 1)
    return int(sizes[np.argmax(rates - line)])


def limits_at(rows: Sequence[Row], slots: int) -> dict[str, float]:
    """Times for comparison: a perfect predictor d layers ahead with the same slots, and all experts resident."""
    times = {row["system"]: row["tpot_s"] for row in rows if row["slots"] == slots or row["system"] == RESIDENT}
    return {name: times[name] for name in (ORACLE, RESIDENT) if name in times}


def _verdict(low: float, high: float, num_requests: int) -> str:
    if num_requests < FEWEST_REQUESTS or not (np.isfinite(low) and np.isfinite(high)):
        return "cannot be told"
    if low >= 1 / _SIMPLER_WITHIN and high <= _SIMPLER_WITHIN:
        return "makes no difference"
    return "pays" if high < 1 else "costs" if low > 1 else "cannot be told"


def _fastest(rows: Iterable[Row]) -> Row:
    return min(rows, key=lambda row: row["tpot_s"])
