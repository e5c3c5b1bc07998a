"""How far the design scales (notebooks/studies/scale.ipynb): the link's demand by devices, the store's by capacity."""

from typing import TYPE_CHECKING

import pandas as pd

from finemoe.artifact.plotting import log_ticks, provenance, series_styles, use_style
from finemoe.simulation.cost import size_named
from finemoe.simulation.testbed import Testbed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STORE = "store"
_STORE_PANELS = {"store_mb": "store (MB)", "search_ms": "one trajectory search (ms)"}


def figure_table(scaled: pd.DataFrame, stores: pd.DataFrame) -> pd.DataFrame:
    """Both tables of `analysis.scale`, one below the other."""
    return pd.concat([scaled, stores.assign(system=_STORE)], ignore_index=True)


def draw(table: pd.DataFrame, testbed: str, expert_memory: float, prefetch_distance: int, store_capacity: int) -> "Figure":
    """Time per token by devices for each model, and the store's memory and search time by capacity.

    Args:
        table: as from `figure_table`. The rest: the settings behind it, for the line below the figure.
    """
    import matplotlib.pyplot as plt

    use_style()
    models, stores = list(dict.fromkeys(table.model)), table[table.system == _STORE]
    scaled = table[table.system != _STORE]
    fig, axes = plt.subplots(1, len(models) + len(_STORE_PANELS), figsize=(2.9 * (len(models) + 2), 3.1))
    for axis, name in zip(axes, models, strict=False):
        _draw_devices(axis, scaled[scaled.model == name], name)
    axes[0].set_ylabel("ms per token")
    for axis, (column, label) in zip(axes[len(models) :], _STORE_PANELS.items(), strict=True):
        _draw_store(axis, stores, column, models)
        axis.set_ylabel(label)
    colors = series_styles(models)["palette"]
    for name in models:
        axes[-1].axhline(scaled[scaled.model == name].layer_ms.iloc[-1], color=colors[name], linestyle=":", linewidth=1)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize=7)
    limits = f"at most {expert_memory:.0%} of the experts, d = {prefetch_distance}, C = {store_capacity}"
    machine = f"{Testbed.load(testbed).title} x devices"
    provenance(fig, "simulated, synthetic routing", machine, limits, "dotted right: time of one layer")
    return fig


def limits_in_words(table: pd.DataFrame) -> list[str]:
    """Where the design stops scaling, one sentence for each model.

    Args:
        table: as from `figure_table`.
    """
    scaled, stores = table[table.system != _STORE], table[table.system == _STORE]
    models = dict.fromkeys(table.model)
    return [_limits(name, scaled[scaled.model == name], stores[stores.model == name]) for name in models]


def _draw_devices(axis: "Axes", table: pd.DataFrame, name: str) -> None:
    look = series_styles(list(dict.fromkeys(table.system)))
    for system in dict.fromkeys(table.system):
        line = table[table.system == system]
        marks = {"color": look["palette"][system], "marker": look["markers"][system], "markersize": 4}
        axis.plot(line.devices, line.tpot_ms, label=f"TPOT, {system}", **marks)
    ours = table[table.system == "FineMoE"]
    axis.plot(ours.devices, ours.link_ms, color="#888888", linestyle=":", label="FineMoE's transfers, all links busy")
    layers_ms = ours.layer_ms * size_named(name).num_layers
    axis.plot(ours.devices, layers_ms, color="black", linestyle="--", linewidth=1, label="layers without waiting")
    axis.set(xscale="log", yscale="log", xlabel="devices", title=name)
    axis.set_xticks(ours.devices, [f"{count:.0f}" for count in ours.devices])
    axis.xaxis.minorticks_off()
    log_ticks(axis.yaxis)


def _draw_store(axis: "Axes", stores: pd.DataFrame, column: str, models: list[str]) -> None:
    marks = series_styles(models)
    for name in models:
        part = stores[stores.model == name]
        line, theory, color = part[part.kind == "given"], part[part.kind != "given"], marks["palette"][name]
        axis.plot(line.capacity, line[column], color=color, marker=marks["markers"][name], markersize=3.5, label=name)
        axis.plot(theory.capacity, theory[column], color=color, marker="*", markersize=9, linestyle="")
    axis.set(xscale="log", yscale="log", xlabel="C (maps)")
    axis.legend(fontsize=6.5, title="stars: coverage theory", title_fontsize=6.5)


def _limits(name: str, scaled: pd.DataFrame, stores: pd.DataFrame) -> str:
    ours, line = scaled[scaled.system == "FineMoE"], stores[stores.kind == "given"]
    layer_ms, theory = ours.layer_ms.iloc[-1], stores[stores.kind != "given"].set_index("kind").loc["98 % similar"]
    slow = line[line.search_ms > layer_ms].capacity
    enough = ours[ours.tpot_ms < 1.1 * ours.layer_ms * size_named(name).num_layers].devices
    search = f"from C = {slow.min():.0f} on" if len(slow) else f"at no capacity up to {line.capacity.max():.0f}"
    devices = f"from {enough.min():.0f} devices on" if len(enough) else "on no number of devices tried"
    return (
        f"{name}: a search takes longer than a layer ({layer_ms:.2f} ms) {search}. FineMoE is within 10 % of the layers' own "
        f"time {devices}. For 98 % similarity the coverage theory asks for {theory.capacity:,.0f} maps, "
        f"{theory.store_mb / 1e3:.1f} GB, which do not provide it (see below)."
    )
