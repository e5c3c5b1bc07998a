"""Figure 17: where the time of one decode iteration goes, measured and modelled."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from finemoe.artifact.analysis.modelled_breakdown import BESIDE, CRITICAL, modelled_breakdown
from finemoe.artifact.figures.grids import grid, published_title
from finemoe.artifact.figures.panels import legend_above, percent
from finemoe.artifact.figures.recordings import recordings
from finemoe.artifact.plotting import machine, model_title, provenance
from finemoe.paths import ROOT
from finemoe.simulation.cost import PUBLISHED
from finemoe.simulation.testbed import Testbed
from finemoe.traces import RoutingTrace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def modelled_table(
    traces: Sequence[str], testbed: str, expert_memory: float, prefetch_distance: int, store_capacity: int
) -> pd.DataFrame:
    """An iteration of FineMoE as modelled for the paper's models on a testbed: ms by part, indexed by model."""
    settings = (testbed, expert_memory, prefetch_distance, store_capacity)
    rows = [
        modelled_breakdown(trace.split("history"), trace.split("served"), *settings) | {"model": model}
        for model, _, trace in recordings(traces)
    ]
    return pd.DataFrame(rows).set_index("model")


def measured_table(
    models: Sequence[str],
    traces: Sequence[str],
    prompts: Sequence[str],
    num_tokens: int,
    expert_memory: float,
    prefetch_distance: int,
    load_s: float,
) -> pd.DataFrame:
    """An iteration of FineMoE as measured on this machine over a paced link: ms by part, indexed by model.

    Args:
        models: folders of checkpoints; traces: of the same models, whose history FineMoE knows. Relative paths start at the
            repository root.
        num_tokens: generated for each prompt. load_s: time of one expert on the link.
    """
    from finemoe.artifact.pipeline.live_breakdown import measured_breakdown  # loads torch

    rows = []
    for folder, path in zip(models, traces, strict=True):
        history = RoutingTrace.load(ROOT / path).split("history")
        found = measured_breakdown(
            str(ROOT / folder), list(prompts), num_tokens, history, expert_memory, prefetch_distance, load_s
        )
        rows.append(found | {"model": Path(folder).name})
    return pd.DataFrame(rows).set_index("model")


def draw(
    live: pd.DataFrame, modelled: pd.DataFrame, load_ms: float, testbed: str, expert_memory: float, prefetch_distance: int
) -> "Figure":
    """Draw Figure 17.

    Args:
        live, modelled: as `measured_table` and `modelled_table` return them; the modelled bars take the engine's own time
            from the measured ones. load_ms: time of one expert on the paced link.
        testbed, expert_memory, prefetch_distance: for titles and the line below the figure.
    """
    fig, axes = grid(2, 1, 7.2, 4.6)
    upper, lower = axes[:, 0]
    _draw_bars(upper, live, [model_title(name).split(" (")[0] for name in live.index])
    upper.set_title(f"measured: miniatures, one expert takes {load_ms:g} ms")
    whole = modelled.assign(engine_ms=live.engine_ms_per_layer * live.num_layers)
    _draw_bars(lower, whole, [published_title(PUBLISHED[name]) for name in modelled.index])
    lower.set_title(f"modelled: the paper's models on {Testbed.load(testbed).title}")
    legend_above(fig, [upper], ncols=3)
    here = f"{machine()}, of which other work took {live.busy.mean():.0%}"
    settings = f"{percent(expert_memory)}, d = {prefetch_distance}"
    bars = "upper bar: critical path; lower bar: at the same time"
    provenance(fig, "measured (paced) above, simulated below", here, settings, bars)
    return fig


def _draw_bars(axis: "Axes", table: pd.DataFrame, names: Sequence[str]) -> None:
    """Two bars a model: what the iteration waits for, and what runs at the same time."""
    for offset, parts, height in ((0.18, CRITICAL, 0.36), (-0.2, BESIDE, 0.24)):
        places, left = [number - offset for number in range(len(table))], pd.Series(0.0, index=table.index)
        for column, (label, colour, hatch) in parts.items():
            look: dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": "black", "linewidth": 0.5, "label": label}
            axis.barh(places, table[column], height, left=left, **look)
            left += table[column]
    axis.set_yticks(range(len(table)), names)
    axis.invert_yaxis()
    axis.set_xlabel("ms per decode iteration")
