"""The claims on systems side by side: Figs. 10 and 13."""

import pandas as pd

from finemoe.artifact.claims import Claim, Statement
from finemoe.artifact.verdicts.gains import NAMES, REPORTED_GAINS, exceptions_in, mean_gains
from finemoe.artifact.verdicts.kinds import REAL, entries_of, panel_of, panels_of


def systems_claim(id_: str, artefact: str, gains: pd.DataFrame, floor: str = "") -> Claim:
    """FineMoE has lower TTFT and TPOT than all baselines and hits more than the last three.

    Args:
        gains: as `gains_table` returns them. floor: as `against_on_demand` returns it.
    """
    is_ahead, is_latency = gains.low > 0, gains.quantity != "hit_rate"
    real = gains.model == REAL
    behind = gains[~is_ahead]
    return Claim.judged(
        [
            Statement.of(
                f"{NAMES[of]} {'above' if of == 'hit_rate' else 'below'} a baseline's", name, panel[panel.quantity == of].low > 0
            )
            for name, panel in panels_of(gains)
            for of in dict.fromkeys(panel.quantity)
        ],
        id=id_,
        artefact=artefact,
        claim="FineMoE has lower TTFT and TPOT than the four other offloading systems, and a higher hit rate than three of them",
        reported=_per_baseline(REPORTED_GAINS),
        reproduced="; ".join(f"{name}: {_per_baseline(mean_gains(part))}" for name, part in panels_of(gains)),
        panel=panel_of(gains),
        executor="simulated",
        why=f"{int(is_ahead.sum())} of {len(gains)} comparisons have their whole interval on FineMoE's side; for latency alone "
        f"{int((is_ahead & is_latency).sum())} of {int(is_latency.sum())}, on real routing "
        f"{int((is_ahead & is_latency & real).sum())} of {int((is_latency & real).sum())}. {exceptions_in(behind)} "
        "Real routing has neither prefills nor routers applied ahead, so TTFT and Mixtral-Offloading are not tested there."
        + (f" {floor}" if floor else ""),
    )


def high_end_tests(both: pd.DataFrame) -> pd.DataFrame:
    """Mean gains in latency on the A100 against those on the paper's testbed.

    Args:
        both: rows as `gains_table` returns them on the A100, with gain_paper_testbed, the same gain on the paper's testbed.
    Returns:
        By panel (miniatures or real routing), quantity and baseline: the two mean gains; is_smaller, whether there is a gain on
        the paper's testbed and a smaller one here; is_same_order, whether this quantity has the baselines in the same order.
    """
    panels = {}
    for name, part in panels_of(both[both.quantity != "hit_rate"]):
        mean = part.groupby(["quantity", "baseline"], sort=False)[["gain", "gain_paper_testbed"]].mean()
        here, there = _order(mean.gain), _order(mean.gain_paper_testbed)
        is_smaller = (mean.gain < mean.gain_paper_testbed) & (mean.gain_paper_testbed > 0)  # a loss is no smaller gain
        is_same_order = [here[quantity] == there[quantity] for quantity, _ in mean.index]
        panels[name] = mean.assign(is_smaller=is_smaller, is_same_order=is_same_order)
    return pd.concat(panels, names=["panel"])


def high_end_claim(both: pd.DataFrame, floor: str = "") -> Claim:
    """On the A100 the gains are smaller, in the same order.

    Args:
        both: as `high_end_tests` takes it. floor: as `against_on_demand` returns it.
    """
    latency, tests = both[both.quantity != "hit_rate"], high_end_tests(both)
    panels = {name: tests.loc[name] for name in tests.index.unique("panel")}
    orders = {name: part.is_same_order.groupby(level="quantity", sort=False).first() for name, part in panels.items()}
    is_ahead = latency.low > 0
    return Claim.judged(
        [Statement.of("a mean gain, smaller than on the six RTX 3090", name, part.is_smaller) for name, part in panels.items()]
        + [Statement.of("the baselines in the same order", name, flags) for name, flags in orders.items()],
        id="F13",
        artefact="Fig. 13",
        claim="On an A100 FineMoE's gains in latency are smaller than on the six RTX 3090, in the same order",
        reported="smaller gains, same order; FineMoE behind MoE-Infinity on Mixtral as read off the plot; no number",
        reproduced="; ".join(f"{name}: {_on_both_testbeds(part)}" for name, part in panels.items()),
        panel=panel_of(latency),
        executor="simulated",
        why="; ".join(
            f"{name}: there is a mean gain, and a smaller one, for {int(part.is_smaller.sum())} of {len(part)} pairs of quantity"
            f" and baseline, the order of the baselines {'the same' if orders[name].all() else 'another one'}"
            for name, part in panels.items()
        )
        + f". FineMoE is ahead with its whole interval in {int(is_ahead.sum())} of {len(latency)} comparisons. "
        f"{exceptions_in(latency[~is_ahead])}" + (f" {floor}" if floor else ""),
    )


def _on_both_testbeds(means: pd.DataFrame) -> str:
    return ", ".join(
        f"{NAMES[quantity]} against {baseline} {-row.gain:+.0%} (6 x RTX 3090: {-row.gain_paper_testbed:+.0%})"
        for (quantity, baseline), row in entries_of(means)
    )


def _order(gains: "pd.Series[float]") -> dict[str, tuple[str, ...]]:
    """The baselines of every quantity from the smallest gain to the largest."""
    return {str(name): tuple(part.sort_values().index.get_level_values("baseline")) for name, part in gains.groupby(level=0)}


def _per_baseline(gains: dict[str, dict[str, float]]) -> str:
    return ", ".join(
        f"{NAMES[quantity]} "
        + "/".join(f"{_signed(quantity, share):+.0%}" for share in by_baseline.values())
        + f" ({', '.join(by_baseline)})"
        for quantity, by_baseline in gains.items()
    )


def _signed(quantity: str, gain: float) -> float:
    return gain if quantity == "hit_rate" else -gain
