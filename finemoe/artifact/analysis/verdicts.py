"""What the paper's latency figures claim, tested on tables of requests: the trend by code, the verdict by the rule of claims.py.

Every comparison is paired over requests: FineMoE and a baseline serve the same ones, and a gain counts where its whole 95 %
interval lies above zero. Real routing (gpt-oss-20b) is tested by itself where it was recorded; the miniatures cannot outvote it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from finemoe.artifact.analysis.latency import BASELINES, reduction
from finemoe.artifact.claims import Claim, Statement

SYSTEM, FLOOR, REAL = "FineMoE", "on-demand (LRU)", "gpt-oss-20b"
# By what share FineMoE is below (TTFT, TPOT) or above (hit rate) each baseline (Fig. 10).
REPORTED_GAINS = {
    "ttft_s": dict(zip(BASELINES, (0.74, 0.67, 0.56, 0.53), strict=True)),
    "tpot_s": dict(zip(BASELINES, (0.46, 0.38, 0.27, 0.22), strict=True)),
    "hit_rate": dict(zip(BASELINES[1:], (0.14, 0.37, 0.68), strict=True)),
}
REPORTED_AT_6_GB = dict(zip(BASELINES, (0.36, 0.25, 0.16, 0.29), strict=True))
REPORTED_DISTANCES = {"mixtral-mini": 3, "qwen-mini": 6, "phi-mini": 4}
REPORTED_HEADLINE = {"latency": 0.47, "hit rate": 0.39}
_NAMES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "hit_rate": "hit rate"}
_CLOSED = 0.02  # a gap of at most this share counts as closed


def gains_table(requests: pd.DataFrame, seed: int = 0, by: Sequence[str] = ("model", "dataset")) -> pd.DataFrame:
    """FineMoE against every baseline, group by group.

    Args:
        requests: rows as `analysis.latency.latency_table` gives them, with the columns `by`.
    Returns:
        Rows (*by, quantity, baseline, gain, low, high, reported); gain is the share by which TTFT and TPOT are lower, the hit
        rate higher. What was not recorded has no row.
    """
    rows = []
    for key, part in requests.groupby(list(by), sort=False):
        ours = part[part.system == SYSTEM]
        for quantity, reported in REPORTED_GAINS.items():
            for baseline in reported:
                theirs = part[part.system == baseline]
                if len(theirs) and (quantity == "hit_rate" or ours[quantity].notna().any()):
                    gain, low, high = reduction(theirs, ours, quantity, seed)
                    gain, low, high = (-gain, -high, -low) if quantity == "hit_rate" else (gain, low, high)
                    found = {"gain": gain, "low": low, "high": high, "reported": reported[baseline]}
                    rows.append({**dict(zip(by, key, strict=True)), "quantity": quantity, "baseline": baseline, **found})
    return pd.DataFrame(rows)


def against_on_demand(requests: pd.DataFrame, seed: int = 0) -> str:
    """FineMoE beside the floor that the paper leaves out, loading on demand with LRU, in words."""
    changes = []
    for name, part in _panels(requests):
        groups = [group for _, group in part.groupby(["model", "dataset"], sort=False)]
        lower = [reduction(one[one.system == FLOOR], one[one.system == SYSTEM], "tpot_s", seed).value for one in groups]
        changes.append(f"{-np.mean(lower):+.0%} on {name}")
    return f"Beside loading on demand with LRU, which the paper does not show, FineMoE's TPOT is {', '.join(changes)}."


def systems_claim(id_: str, artefact: str, gains: pd.DataFrame, floor: str = "") -> Claim:
    """FineMoE has lower TTFT and TPOT than all baselines and hits more than the last three.

    Args:
        floor: what `against_on_demand` says.
    """
    is_ahead, is_latency = gains.low > 0, gains.quantity != "hit_rate"
    real = gains.model == REAL
    behind = gains[~is_ahead]
    return Claim.judged(
        [
            Statement.of(
                f"{_NAMES[of]} {'above' if of == 'hit_rate' else 'below'} a baseline's", name, panel[panel.quantity == of].low > 0
            )
            for name, panel in _panels(gains)
            for of in dict.fromkeys(panel.quantity)
        ],
        id=id_,
        artefact=artefact,
        claim="FineMoE has lower TTFT and TPOT than the four other offloading systems, and a higher hit rate than three of them",
        reported=_per_baseline(REPORTED_GAINS),
        reproduced="; ".join(f"{name}: {_per_baseline(_mean_gains(part))}" for name, part in _panels(gains)),
        panel=_panel(gains),
        executor="simulated",
        why=f"{int(is_ahead.sum())} of {len(gains)} comparisons have their whole interval on FineMoE's side; for latency alone "
        f"{int((is_ahead & is_latency).sum())} of {int(is_latency.sum())}, on real routing "
        f"{int((is_ahead & is_latency & real).sum())} of {int((is_latency & real).sum())}. {_exceptions(behind)} "
        "Real routing has neither prefills nor routers applied ahead, so TTFT and Mixtral-Offloading are not tested there."
        + (f" {floor}" if floor else ""),
    )


def headline_claim(gains: pd.DataFrame) -> Claim:
    """The means over baselines: latency (eight cuts) and hit rate (three gains)."""
    found = {name: _headline(part) for name, part in _panels(gains)}
    return Claim.judged(
        [
            Statement.of(f"{what} better by {reported:.0%} at least", name, [values[what] >= reported])
            for name, values in found.items()
            for what, reported in REPORTED_HEADLINE.items()
        ],
        id="H",
        artefact="headline",
        claim="Over the baselines FineMoE cuts latency by 47 % and raises the hit rate by 39 % on average",
        reported=_shares(REPORTED_HEADLINE),
        reproduced="; ".join(f"{name}: {_shares(values)}" for name, values in found.items()),
        panel=_panel(gains),
        executor="simulated",
        why="Means over the baselines of the gains of Fig. 10 (on real routing: TPOT only, three baselines for latency and two "
        "for hits). The eight cuts that the paper prints average 48 %, its three gains 40 %.",
    )


def headline_table(gains: pd.DataFrame) -> pd.DataFrame:
    """The headline's two means and what they are means of, beside the paper's.

    Returns:
        Rows (gain of, panel, share), first the two means.
    """
    rows = []
    for panel, found in [("the paper", None), *_panels(gains)]:
        by_baseline = REPORTED_GAINS if found is None else _mean_gains(found)
        headline = REPORTED_HEADLINE if found is None else _headline(found)
        rows += [(f"{what}, mean", panel, share) for what, share in headline.items()]
        rows += [
            (f"{_NAMES[quantity]} over {baseline}", panel, share)
            for quantity, shares in by_baseline.items()
            for baseline, share in shares.items()
        ]
    table = pd.DataFrame(rows, columns=["gain of", "panel", "share"])
    return table.iloc[np.argsort(~table["gain of"].str.endswith("mean"), kind="stable")].reset_index(drop=True)


def high_end_claim(both: pd.DataFrame, floor: str = "") -> Claim:
    """On the A100 the gains are smaller, in the same order.

    Args:
        both: gains here (gain, low) and on the paper's testbed (gain_paper_testbed). floor: what `against_on_demand` says.
    """
    latency = both[both.quantity != "hit_rate"]
    panels = dict(_panels(latency))
    means = {
        name: part.groupby(["quantity", "baseline"], sort=False)[["gain", "gain_paper_testbed"]].mean()
        for name, part in panels.items()
    }
    # What is no gain on either testbed cannot be a smaller one.
    is_smaller = {name: (mean.gain < mean.gain_paper_testbed) & (mean.gain_paper_testbed > 0) for name, mean in means.items()}
    orders = {name: (_order(mean.gain), _order(mean.gain_paper_testbed)) for name, mean in means.items()}
    is_same_order = {name: [here[quantity] == there[quantity] for quantity in here] for name, (here, there) in orders.items()}
    is_ahead = latency.low > 0
    return Claim.judged(
        [Statement.of("a mean gain, smaller than on the six RTX 3090", name, flags) for name, flags in is_smaller.items()]
        + [Statement.of("the baselines in the same order", name, flags) for name, flags in is_same_order.items()],
        id="F13",
        artefact="Fig. 13",
        claim="On an A100 FineMoE's gains in latency are smaller than on the six RTX 3090, in the same order",
        reported="smaller gains, same order; FineMoE behind MoE-Infinity on Mixtral as read off the plot; no number",
        reproduced="; ".join(
            f"{name}: "
            + ", ".join(
                f"{_NAMES[quantity]} against {baseline} {-row.gain:+.0%} (6 x RTX 3090: {-row.gain_paper_testbed:+.0%})"
                for (quantity, baseline), row in _entries(mean)
            )
            for name, mean in means.items()
        ),
        panel=_panel(latency),
        executor="simulated",
        why="; ".join(
            f"{name}: there is a mean gain, and a smaller one, for {int(is_smaller[name].sum())} of {len(mean)} pairs of quantity"
            f" and baseline, the order of the baselines {'the same' if all(is_same_order[name]) else 'another one'}"
            for name, mean in means.items()
        )
        + f". FineMoE is ahead with its whole interval in {int(is_ahead.sum())} of {len(latency)} comparisons. "
        f"{_exceptions(latency[~is_ahead])}" + (f" {floor}" if floor else ""),
    )


def _order(gains: "pd.Series[float]") -> dict[str, tuple[str, ...]]:
    """The baselines of every quantity from the smallest gain to the largest."""
    return {str(name): tuple(part.sort_values().index.get_level_values("baseline")) for name, part in gains.groupby(level=0)}


def cache_limit_claim(tpot: pd.DataFrame, floor: str = "") -> Claim:
    """At 6 GB FineMoE's TPOT is lowest, and the gaps close as memory grows.

    Args:
        floor: what `against_on_demand` says.
    """
    shared = set.intersection(*(set(part.cache_limit_gb) for _, part in tpot.groupby("model")))
    smallest, largest = min(shared), max(shared)
    first, last = (tpot[tpot.cache_limit_gb == limit] for limit in (smallest, largest))
    is_ahead, is_closed = first.low > 0, last.gain.abs() <= _CLOSED
    real = first.model == REAL
    lowest = {name: part.groupby(["model", "dataset"], sort=False).low.min() > 0 for name, part in _panels(first)}
    return Claim.judged(
        [Statement.of(f"TPOT the lowest at {smallest:g} GB", name, flags) for name, flags in lowest.items()]
        + [Statement.of(f"a gap closed at {largest:g} GB", name, part.gain.abs() <= _CLOSED) for name, part in _panels(last)],
        id="F12",
        artefact="Fig. 12",
        claim="With a small expert cache FineMoE's TPOT is the lowest; the gaps close as memory grows",
        reported=", ".join(f"{baseline} {-share:.0%}" for baseline, share in REPORTED_AT_6_GB.items()) + " at 6 GB",
        reproduced="; ".join(
            f"{name}: "
            + ", ".join(
                f"{baseline} {-share:+.0%}" for baseline, share in part.groupby("baseline", sort=False).gain.mean().items()
            )
            for name, part in _panels(first)
        )
        + f" at {smallest:g} GB",
        panel=_panel(tpot),
        executor="simulated",
        why=f"At {smallest:g} GB FineMoE is ahead in {int(is_ahead.sum())} of {len(first)} comparisons, on real routing in "
        f"{int((is_ahead & real).sum())} of {int(real.sum())}. {_exceptions(first[~is_ahead])} At {largest:g} GB the gap is at "
        f"most {_CLOSED:.0%} in {int(is_closed.sum())} of {len(last)}; what is left is the others' synchronous work."
        + (f" {floor}" if floor else ""),
    )


def footprint_claim(requests: pd.DataFrame, summary: pd.DataFrame, seed: int = 0) -> Claim:
    """FineMoE alone is low on both axes: fastest of the offloading systems, little memory, not much slower than No-offload."""
    gains = gains_table(requests, seed)
    is_fastest = gains[gains.quantity == "tpot_s"].groupby(["model", "dataset"], sort=False).low.min() > 0
    groups = requests.groupby(["model", "dataset"], sort=False)
    is_fastest &= np.array([_is_below(part, FLOOR, seed) for _, part in groups])
    ours, all_ = (summary[summary.system == name].set_index(["model", "dataset"]) for name in (SYSTEM, "No-offload"))
    memory, slowdown = ours.total_gb / all_.total_gb, ours.tpot_s / all_.tpot_s
    is_low = (memory < 0.5) & (slowdown < 2)
    return Claim.judged(
        [
            Statement.of("the fastest offloading system", "miniatures", is_fastest),
            Statement.of("less than half of No-offload's memory", "miniatures", memory < 0.5),
            Statement.of("less than twice No-offload's TPOT", "miniatures", slowdown < 2),
        ],
        id="F1b",
        artefact="Fig. 1b",
        claim="FineMoE alone has both a low memory footprint and a low latency",
        reported="FineMoE alone low on both; no number",
        reproduced="; ".join(
            f"{m}/{d} {memory[m, d]:.0%} of No-offload's memory at {slowdown[m, d]:.1f} times its TPOT" for m, d in memory.index
        ),
        panel="miniatures' routing",
        executor="simulated",
        why=f"FineMoE is the fastest offloading system (whole intervals) in "
        f"{int(is_fastest.sum())} of {len(is_fastest)} panels at "
        f"nearly the same memory; less than half of No-offload's memory and less than twice its TPOT in {int(is_low.sum())}. "
        "On real routing it is not the fastest, see F10.",
    )


def distance_minima(requests: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Where FineMoE's TPOT is least, and whether it is clearly higher at the shortest and at the longest distance; and where its
    TTFT is least (NaN without prefills)."""
    rows = []
    for (model, dataset), part in requests.groupby(["model", "dataset"], sort=False):
        by_distance: dict[int, pd.DataFrame] = {
            int(d): part[part.prefetch_distance == d] for d in part.prefetch_distance.unique()
        }
        tpot = {
            d: float((one.tpot_s * one.num_decode_steps).sum() / one.num_decode_steps.sum()) for d, one in by_distance.items()
        }
        best = min(tpot, key=tpot.__getitem__)
        shortest, longest = (reduction(by_distance[end], by_distance[best], "tpot_s", seed) for end in (min(tpot), max(tpot)))
        rows.append(
            {
                "model": model,
                "dataset": dataset,
                "best_distance": best,
                "reported": REPORTED_DISTANCES.get(str(model), np.nan),
                "below_shortest": shortest.value,
                "below_longest": longest.value,
                "is_inside": bool(shortest.low > 0 and longest.low > 0),
                "best_ttft_distance": _best_ttft_distance(by_distance),
                "shortest": min(tpot),
                "longest": max(tpot),
            }
        )
    return pd.DataFrame(rows)


def _best_ttft_distance(by_distance: dict[int, pd.DataFrame]) -> float:
    ttft = {distance: part.ttft_s.mean() for distance, part in by_distance.items() if part.ttft_s.notna().any()}
    return float(min(ttft, key=ttft.__getitem__)) if ttft else np.nan


def distance_claim(minima: pd.DataFrame) -> Claim:
    """TTFT and TPOT have a minimum inside, at 3, 6 and 4."""
    is_near = ~minima.reported.notna() | ((minima.best_distance - minima.reported).abs() <= 1)
    real, has_ttft = minima.model == REAL, minima.best_ttft_distance.notna()
    is_longest = has_ttft & (minima.best_ttft_distance == minima.longest)
    is_at_end = is_longest | (minima.best_ttft_distance == minima.shortest)
    has_reported = minima.reported.notna()
    return Claim.judged(
        [Statement.of("TPOT's minimum inside, clearly below both ends", name, part.is_inside) for name, part in _panels(minima)]
        + [
            Statement.of("TTFT's minimum inside", "miniatures", ~is_at_end[has_ttft]),
            Statement.of("TPOT's minimum within a layer of the reported", "miniatures", is_near[has_reported]),
        ],
        id="F15",
        artefact="Fig. 15",
        claim="TTFT and TPOT have a minimum at a middle prefetch distance",
        reported="a minimum at 3 (Mixtral), 6 (Qwen) and 4 (Phi)",
        reproduced="; ".join(
            f"{row.model}/{row.dataset} TPOT {row.best_distance} "
            f"({row.below_shortest:.0%} below d = 1, {row.below_longest:.0%} below the longest)"
            + (f", TTFT {row.best_ttft_distance:g}" if told else "")
            for row, told in zip(minima.itertuples(), has_ttft, strict=True)
        ),
        panel=_panel(minima),
        executor="simulated",
        why=f"TPOT's minimum lies inside, clearly below both ends, in {int(minima.is_inside.sum())} of {len(minima)} panels "
        f"(real routing: {'yes' if _all(minima.is_inside[real]) else 'no'}), within one layer of the reported distance in "
        f"{int(is_near[~real].sum())} of {int((~real).sum())} miniature panels. TTFT, which real routing does not tell, is "
        f"least at the longest distance scanned in {int(is_longest.sum())} of {int(has_ttft.sum())}. No distance was chosen.",
    )


def batch_claim(gains: pd.DataFrame) -> Claim:
    """FineMoE is lowest at most batch sizes."""
    latency = gains[gains.quantity != "hit_rate"]
    lowest = latency.groupby(["dataset", "quantity", "batch_size"], sort=False).low.min() > 0
    won: dict[tuple[str, str], list[str]] = {}
    for (dataset, quantity, batch_size), is_lowest in _entries(lowest):
        won.setdefault((dataset, quantity), []).extend([str(batch_size)] * is_lowest)
    at_most = lowest.groupby(level=["dataset", "quantity"], sort=False).mean() > 0.5
    return Claim.judged(
        [Statement.of("lowest at most batch sizes", "Mixtral miniature", at_most)],
        id="F16b",
        artefact="Fig. 16b",
        claim="FineMoE's TTFT and TPOT are the lowest at most batch sizes from 1 to 8",
        reported="FineMoE lowest mostly; no number",
        reproduced="; ".join(
            f"{dataset}, {_NAMES[quantity]}: lowest at {', '.join(sizes) or 'none'}" for (dataset, quantity), sizes in won.items()
        ),
        panel="Mixtral miniature's routing",
        executor="simulated",
        why=f"FineMoE is below every baseline with the whole paired interval in "
        f"{int(lowest.sum())} of {len(lowest)} cells of "
        f"dataset, quantity and batch size; most batch sizes are more than half of them. "
        f"{_exceptions(latency[latency.low <= 0])}",
    )


def _is_below(requests: pd.DataFrame, other: str, seed: int) -> bool:
    """Whether FineMoE's TPOT is below another system's, with the whole paired interval."""
    theirs, ours = (requests[requests.system == name] for name in (other, SYSTEM))
    return bool(reduction(theirs, ours, "tpot_s", seed).low > 0)


def _all(flags: "pd.Series[bool]") -> bool:
    """Whether all are set, and there are any."""
    return bool(len(flags) and flags.all())


def _panel(table: pd.DataFrame) -> str:
    is_there = (table.model == REAL).any()
    return "gpt-oss-20b (real routing) where it can tell, and miniatures, each by itself" if is_there else "miniatures only"


def _panels(gains: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    real = gains.model == REAL
    return [(name, part) for name, part in (("miniatures", gains[~real]), ("gpt-oss-20b", gains[real])) if len(part)]


def _mean_gains(gains: pd.DataFrame) -> dict[str, dict[str, float]]:
    mean = gains.groupby(["quantity", "baseline"], sort=False).gain.mean()
    return {str(quantity): mean[quantity].to_dict() for quantity in dict.fromkeys(gains.quantity)}


def _headline(gains: pd.DataFrame) -> dict[str, float]:
    mean = gains.groupby(["quantity", "baseline"], sort=False).gain.mean().reset_index()
    is_hits = mean.quantity == "hit_rate"
    return {"latency": float(mean[~is_hits].gain.mean()), "hit rate": float(mean[is_hits].gain.mean())}


def _per_baseline(gains: dict[str, dict[str, float]]) -> str:
    return ", ".join(
        f"{_NAMES[quantity]} "
        + "/".join(f"{_signed(quantity, share):+.0%}" for share in by_baseline.values())
        + f" ({', '.join(by_baseline)})"
        for quantity, by_baseline in gains.items()
    )


def _signed(quantity: str, gain: float) -> float:
    return gain if quantity == "hit_rate" else -gain


def _shares(values: dict[str, float]) -> str:
    return f"latency {-values['latency']:+.0%}, hit rate {values['hit rate']:+.0%}"


def _exceptions(behind: pd.DataFrame) -> str:
    """Who is not behind FineMoE, in words."""
    if not len(behind):
        return "No exception."
    counts = behind.groupby(["baseline", "quantity", "model"], sort=False).size()
    return (
        "Not behind FineMoE: "
        + ", ".join(
            f"{baseline} in {_NAMES[quantity]} on {model} ({count})" for (baseline, quantity, model), count in _entries(counts)
        )
        + "."
    )


def _entries(table: "pd.DataFrame | pd.Series[Any]") -> Iterator[tuple[Any, Any]]:
    """(key, row or value) of a table with several keys."""
    return zip(table.index, table if isinstance(table, pd.Series) else table.itertuples(), strict=True)
