"""Whether stores sized by the coverage theory (4.4) contain maps as similar as it promises: recorded and random maps.

They do not. In a store of the size given for 98 % similarity, no random map in 16 or 64 dimensions has a match that similar, and
only 2 % of the recorded maps of gpt-oss-20b do. A store works if iterations resemble each other, not because it covers a sphere.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from finemoe.artifact.progress import progress
from finemoe.maps.search import TrajectorySearch
from finemoe.maps.store import ExpertMapStore
from finemoe.paths import ROOT
from finemoe.traces import RoutingTrace

_MOST_NEW = 500


def theory(num_layers: int, num_experts: int) -> dict[float, int]:
    """The number of maps that the paper's coverage theory asks for, by the similarity that it promises: 0.75 and 0.98."""
    num = num_layers * num_experts
    return {0.75: 2 * num, 0.98: round(0.5 * num * np.log(num))}


def coverage_table(known: np.ndarray, new: np.ndarray) -> pd.DataFrame:
    """The matches for `new` maps in stores of the theory's sizes, filled with the first maps of `known`.

    Args:
        known: [n, L, J] maps; if there are fewer than the theory asks for, the store contains all of them.
        new: [m, L, J] maps.
    Returns:
        Rows (promised, wanted, stored, median, covered): the promised cosine, the number of maps that the theory asks for and the
        number stored, the median cosine of a new map's best match, and the share of new maps whose best match is as good as
        promised.
    """
    _, num_layers, num_experts = known.shape
    rows = []
    for promised, wanted in theory(num_layers, num_experts).items():
        stored = known[:wanted]
        store = ExpertMapStore(num_layers, num_experts, 0, len(stored), prefetch_distance=1)
        store.add(stored)
        search = TrajectorySearch(store, len(new))
        for layer in progress(range(num_layers), f"{len(stored):,} maps", "layer", leave=False):
            search.observe(layer, np.ascontiguousarray(new[:, layer]))
        _, best = search.nearest()
        found = {"promised": promised, "wanted": wanted, "stored": len(stored), "median": float(np.median(best))}
        rows.append(found | {"covered": float((best >= promised).mean())})
    return pd.DataFrame(rows)


def recorded_maps(trace: RoutingTrace) -> tuple[np.ndarray, np.ndarray]:
    """Maps of the history's rows, shuffled, and of some served rows, evenly spaced."""
    history, served = trace.split("history"), trace.split("served")
    most = max(theory(trace.num_layers, trace.num_experts).values())
    known = np.random.default_rng(0).permutation(history.num_rows)[:most]
    return history.maps(known), served.maps(np.linspace(0, served.num_rows - 1, min(_MOST_NEW, served.num_rows)).astype(int))


def random_maps(num_layers: int, num_experts: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Known and new maps; each layer's distribution is drawn uniformly from all distributions."""
    rng = np.random.default_rng(seed)
    counts = max(theory(num_layers, num_experts).values()), _MOST_NEW
    known, new = (rng.dirichlet(np.ones(num_experts), (count, num_layers)).astype(np.float32) for count in counts)
    return known, new


def covered_table(recorded: str, known: str, seed: int = 0) -> pd.DataFrame:
    """`coverage_table` for random maps, a recorded trace and gpt-oss-20b, with their names in the column `maps`.

    Args:
        recorded: path of a trace.
        known: table of gpt-oss-20b. Relative paths start at the repository root.
        seed: seed of the random maps.
    """
    found = {
        "random, 1x16": coverage_table(*random_maps(1, 16, seed)),
        "random, 1x64": coverage_table(*random_maps(1, 64, seed)),
        "recorded, Qwen miniature": coverage_table(*recorded_maps(RoutingTrace.load(ROOT / recorded))),
        "recorded, gpt-oss-20b (4 of 32 probabilities known)": pd.read_csv(ROOT / known).drop(columns=["model", "dataset"]),
    }
    return pd.concat(found, names=["maps", None]).reset_index(level=0)


def covered_in_words(covered: pd.DataFrame) -> Iterator[str]:
    """One sentence for each row of `covered_table`."""
    for row in covered.itertuples():
        yield (
            f"{row.maps}: {row.stored:,} maps where the theory asks for {row.wanted:,}. {row.covered:.1%} of new maps have one "
            f"that is at least {row.promised:.0%} similar (promised: all); the median best match is {row.median:.3f}."
        )
