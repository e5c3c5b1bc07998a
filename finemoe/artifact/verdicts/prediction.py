"""The claim on prediction: Fig. 4."""

import numpy as np
import pandas as pd

from finemoe.artifact.claims import Claim, Statement
from finemoe.artifact.verdicts.kinds import REAL, entries_of

FINE, RANDOM_STORE = "expert maps", "expert maps, random store"
COARSE = ["request neighbour", "request history"]
_PANEL = ["model", "dataset"]
_SHOWN_DISTANCE = 3  # layers; the paper's own in its overall setup


def distance_tests(table: pd.DataFrame) -> pd.DataFrame:
    """Fine against the better coarse method, at every prefetch distance.

    Args:
        table: as `figures.f4.predictions` returns it; what has no distance is left out.
    Returns:
        One row per (model, dataset, distance): the gain of the expert maps in hit rate, and whether their interval, and that of
        maps drawn at random, is above those of both coarse methods.
    """
    predicted = table[table.distance.notna()].astype({"distance": int})
    wide = predicted.pivot_table(index=[*_PANEL, "distance"], columns="method", values=["hit_rate", "low", "high"], sort=False)
    hit_rate, highest = wide["hit_rate"], np.maximum(*(wide["high"][method] for method in COARSE))
    return pd.DataFrame(
        {
            "gain": hit_rate[FINE] - np.maximum(*(hit_rate[method] for method in COARSE)),
            "fine_above_coarse": wide["low"][FINE] > highest,
            "random_above_coarse": wide["low"][RANDOM_STORE] > highest,
        }
    )


def prediction_tests(table: pd.DataFrame) -> pd.DataFrame:
    """The trends of every panel.

    Args:
        table: as `distance_tests` takes it.
    Returns:
        One row per (model, dataset): whether fine is above coarse at every distance, whether it falls from the smallest distance
        to the greatest (intervals apart), and its gain three layers ahead (at the smallest distance where three is not tested).
    """
    by_distance = distance_tests(table)
    panels = by_distance.groupby(_PANEL, sort=False)
    shown = by_distance.gain[by_distance.index.get_level_values("distance") == _SHOWN_DISTANCE].droplevel("distance")
    first = panels.gain.first()
    fine = table[table.method == FINE].groupby(_PANEL, sort=False)
    return pd.DataFrame(
        {
            "fine_above_coarse": panels.fine_above_coarse.all(),
            "fine_falls": fine.apply(lambda part: part.high.iloc[-1] < part.low.iloc[0]),
            "gain_at_3": shown.reindex(first.index).fillna(first),
        }
    )


def prediction_claim(tests: pd.DataFrame, by_distance: pd.DataFrame) -> Claim:
    """Fine prediction hits more than coarse at every distance, and falls with it.

    Args:
        tests: as `prediction_tests` returns them. by_distance: as `distance_tests` returns them.
    """
    real = by_distance[by_distance.index.get_level_values("model") == REAL]
    trends = {"fine above coarse at a distance": by_distance.fine_above_coarse, "fine falls with distance": tests.fine_falls}
    return Claim.judged(
        [Statement.of(text, name, part) for text, flags in trends.items() for name, part in _kinds_of(flags)],
        id="F4",
        artefact="Fig. 4",
        claim="Fine prediction hits more than coarse at every prefetch distance; the hit rate falls with distance",
        reported="fine higher at every distance; falls with distance; no number",
        reproduced="gain of maps over the better coarse method, 3 layers ahead: "
        + "; ".join(f"{model}/{dataset} {row.gain_at_3:+.2f}" for (model, dataset), row in entries_of(tests)),
        panel="gpt-oss-20b (real routing) and miniatures, separately",
        executor="recorded",
        why=f"Maps lie above both coarse methods at every distance in {int(tests.fine_above_coarse.sum())} of {len(tests)} "
        f"panels and fall with distance in {int(tests.fine_falls.sum())}, with equally many experts named. On real routing "
        f"the paper's store (replacement by RDY) is above at distances {_where(real.fine_above_coarse)} of {_range_of(real)}; "
        f"the same search over as many maps drawn at random from the history at {_where(real.random_above_coarse)}: a likely "
        "reason, not tested here, is that replacing what is redundant thins out the common maps.",
    )


def _kinds_of(flags: "pd.Series[bool]") -> list[tuple[str, "pd.Series[bool]"]]:
    """The miniatures' flags and the real routing's, each with its name."""
    is_real = flags.index.get_level_values("model") == REAL
    return [("miniatures", flags[~is_real]), (REAL, flags[is_real])]


def _where(flags: "pd.Series[bool]") -> str:
    """The distances at which a flag is set."""
    return ", ".join(str(distance) for distance in flags[flags].index.get_level_values("distance")) or "none"


def _range_of(by_distance: pd.DataFrame) -> str:
    distances = by_distance.index.get_level_values("distance")
    return f"{distances.min()} to {distances.max()}"
