"""What follows from the numbers: where hit rates break down, how much memory pays, and whether loading ahead does."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from finemoe.advice.systems import LIMITS, ON_DEMAND, ORACLE, PREFETCHING, RESIDENT
from finemoe.advice.timing import Reports, time_ratio
from finemoe.simulation.curves import HitCurve

WITHIN = 1.10  # of the least time: what more memory could gain is not worth its price
_SIMPLER_WITHIN = 1.02  # a system that loads ahead must gain more, or the simpler one is named
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Recommendation:
    """How much expert memory, under which system.

    Attributes:
        system, slots, row: what is recommended, and what was timed of it (`time_rows`). best: the fastest that fits. on_demand,
            prefetching: the fastest of each kind at the recommended size; prefetching is None where the trace can serve none.
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
        """Plain types only, ready for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def recommended(rows: Sequence[Row]) -> Recommendation | None:
    """The smallest size at which some system takes at most 10 % longer than the fastest that fits, and the system that is fastest
    there; where loading ahead gains less than 2 %, the one that loads on demand. None where nothing fits."""
    real = [row for row in rows if row["system"] not in LIMITS and np.isfinite(row["tpot_s"])]
    if not (fitting := [row for row in real if row["fits"]]):
        return None
    best = _fastest(fitting)
    slots = min(row["slots"] for row in fitting if row["tpot_s"] <= WITHIN * best["tpot_s"])
    here = [row for row in fitting if row["slots"] == slots]
    on_demand = _fastest(row for row in here if row["system"] in ON_DEMAND)
    ahead = [row for row in here if row["system"] in PREFETCHING]
    prefetching = _fastest(ahead) if ahead else None
    gains = prefetching is not None and prefetching["tpot_s"] * _SIMPLER_WITHIN < on_demand["tpot_s"]
    row = prefetching if prefetching is not None and gains else on_demand
    limited = min(one["tpot_s"] for one in real) * WITHIN < best["tpot_s"]
    return Recommendation(row["system"], slots, row, best, on_demand, prefetching, limited)


def prefetch_rows(rows: Sequence[Row], reports: Reports, seed: int = 0) -> list[dict[str, Any]]:
    """What prefetching is worth at every size: the fastest prefetching system over the fastest on-demand system.

    Returns:
        Rows (slots, expert_memory, on_demand, prefetching, ratio, low, high, verdict): ratio of decode times of the same requests
        with its 95 % interval over them; verdict "pays", "costs", or "cannot be told" where the interval contains 1 or is
        missing.
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
                "verdict": "pays" if high < 1 else "costs" if low > 1 else "cannot be told",
            }
        )
    return found


def cliff(curve: HitCurve, num_layers: int, top_k: int) -> dict[str, Any]:
    """Where LRU begins to hit: at one token's cycle, for a layer's experts are only asked for again when all others have run.

    Returns:
        cycle: L·K slots; hit_rate_at: LRU's with that many; hit_rate_before: with the slots of one layer less, K fewer.
    """
    cycle = num_layers * top_k
    at, before = (float(np.interp(size, curve.slots, curve.hit_rates)) for size in (cycle, cycle - top_k))
    return {"cycle": cycle, "hit_rate_at": at, "hit_rate_before": before}


def knee(curve: HitCurve) -> int:
    """The size after which more memory brings least: where a curve is highest above the line between its ends (Satopää et al.,
    Finding a "kneedle" in a haystack, 2011)."""
    sizes, rates = curve.slots / curve.slots[-1], curve.hit_rates
    line = rates[0] + (rates[-1] - rates[0]) * (sizes - sizes[0]) / max(sizes[-1] - sizes[0], 1e-12)
    return int(curve.slots[np.argmax(rates - line)])


def limits_at(rows: Sequence[Row], slots: int) -> dict[str, float]:
    """The least times there could be with so many slots: of who knows what comes d layers ahead, and of who has everything."""
    times = {row["system"]: row["tpot_s"] for row in rows if row["slots"] == slots or row["system"] == RESIDENT}
    return {name: times[name] for name in (ORACLE, RESIDENT) if name in times}


def _fastest(rows: Iterable[Row]) -> Row:
    return min(rows, key=lambda row: row["tpot_s"])
