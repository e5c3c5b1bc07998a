"""Figure 3a: the gate's distribution in single iterations of a request, and its mean over all of them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import PowerNorm

from finemoe.artifact.figures.panels import in_order
from finemoe.artifact.plotting import model_title, provenance, use_style
from finemoe.intervals import bootstrap_mean
from finemoe.traces import DECODE, RoutingTrace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# With 60 experts most probabilities are below 0.02, a few far above: on a linear scale up to the highest, the rest is white.
_SQUARE_ROOT, _DARKEST = 0.5, 0.995
_TICKS = (0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)  # of the colour bar


def map_table(recorded: Mapping[str, RoutingTrace], request: int, iterations: Sequence[int]) -> pd.DataFrame:
    """Gate probabilities of one request: the mean over its decode iterations, and single ones.

    Args:
        recorded: served requests by model. request: which of them, without those that end with their first token.
        iterations: which decode iterations, from 1; where a request has fewer, its last.
    Returns:
        Rows (layer, expert, probability, model, kind).
    """
    return pd.concat(
        _tidy(map_).assign(model=model, kind=kind)
        for model, trace in recorded.items()
        for kind, map_ in _maps_of(trace, request, iterations)
    )


def _maps_of(trace: RoutingTrace, request: int, iterations: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
    decode = _decode_rows_of(trace, request)
    yield f"mean of {len(decode)} iterations", trace.maps(decode).mean(axis=0)
    for iteration in sorted({min(iteration, len(decode)) for iteration in iterations}):
        yield f"iteration {iteration}", trace.maps(decode[iteration - 1 : iteration])[0]


def _decode_rows_of(trace: RoutingTrace, request: int) -> np.ndarray:
    decoded = [one for one in range(trace.num_requests) if (trace.phase[trace.rows_of(one)] == DECODE).any()]
    rows = trace.rows_of(decoded[request])
    return np.arange(rows.start, rows.stop)[trace.phase[rows] == DECODE]


def _tidy(map_: np.ndarray) -> pd.DataFrame:
    wide = pd.DataFrame(map_).rename_axis("layer").reset_index()
    return wide.melt("layer", var_name="expert", value_name="probability")


def top_k_shares(recorded: Mapping[str, RoutingTrace]) -> pd.DataFrame:
    """The share of the gate's probability that its K most probable experts hold, over all served requests.

    Returns:
        Rows (model, kind, share, low, high) with kind "fine" (single iterations) and "coarse" (the request's mean).
    """
    rows = []
    for model, trace in recorded.items():
        shares = [_shares_of(trace, request) for request in range(trace.num_requests)]
        for kind, values in zip(("fine", "coarse"), np.array(shares).T, strict=True):
            interval = bootstrap_mean(values)
            rows.append({"model": model, "kind": kind, "share": interval.value, "low": interval.low, "high": interval.high})
    return pd.DataFrame(rows)


def _shares_of(trace: RoutingTrace, request: int) -> tuple[float, float]:
    """(fine, coarse) share of the K most probable experts in one request, a mean over layers."""
    maps = trace.maps(trace.rows_of(request))[trace.phase[trace.rows_of(request)] == DECODE]
    return _top_share(maps, trace.top_k), _top_share(maps.mean(axis=0), trace.top_k)


def _top_share(maps: np.ndarray, top_k: int) -> Any:
    return np.sort(maps, axis=-1)[..., -top_k:].sum(axis=-1).mean()


def draw(table: pd.DataFrame, request: int) -> "Figure":
    """Heat maps, one row per model: the mean first, then the single iterations.

    Args:
        table: as `map_table` returns it. request: for the line below the figure.
    """
    use_style()
    models = in_order(table.model)
    num_columns = int(table.groupby("model").kind.nunique().max())
    fig, axes = plt.subplots(len(models), num_columns, figsize=(7.2, 2.2 * len(models)), squeeze=False)
    for row, model in zip(axes, models, strict=True):
        _draw_model(fig, row, table[table.model == model], model_title(model))
    scale = f"square-root colour scale for each model, up to the {100 * _DARKEST:g} % quantile"
    provenance(fig, "recorded routing of the miniatures", f"served request {request} of each trace", scale)
    return fig


def _draw_model(fig: "Figure", axes: Sequence["Axes"], part: pd.DataFrame, title: str) -> None:
    darkest = float(part.probability.quantile(_DARKEST))
    norm = PowerNorm(_SQUARE_ROOT, vmin=0, vmax=darkest)
    kinds = in_order(part.kind)
    for axis, kind in zip(axes, kinds, strict=False):
        image = _draw_map(axis, part[part.kind == kind].pivot(index="layer", columns="expert", values="probability"), norm)
        axis.set_title(kind, fontsize=7.5)
    for axis in axes[len(kinds) :]:
        axis.set_visible(False)
    axes[0].set_ylabel(f"{title}\nlayer")
    ticks = [tick for tick in _TICKS if tick <= darkest]
    bar = fig.colorbar(image, ax=list(axes), label="gate probability", extend="max", ticks=ticks, pad=0.01, fraction=0.03)
    bar.ax.set_yticklabels([f"{tick:g}" for tick in ticks])


def _draw_map(axis: "Axes", map_: pd.DataFrame, norm: PowerNorm) -> Any:
    image = axis.imshow(map_.to_numpy(), norm=norm, cmap="Blues", aspect="auto", interpolation="none")
    for set_ticks, count in ((axis.set_xticks, map_.shape[1]), (axis.set_yticks, map_.shape[0])):
        ticks = range(0, count, max(1, count // 4))
        set_ticks(ticks, [str(tick + 1) for tick in ticks])
    axis.set_xlabel("expert")
    axis.tick_params(length=0)
    axis.grid(visible=False)
    return image
