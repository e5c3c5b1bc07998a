"""Heat maps of recorded routing, a search drawn as it happens, and where fine prediction beats coarse."""

from typing import TYPE_CHECKING, Any

import numpy as np

from finemoe.artifact.analysis.entropy import decode_rows, entropy_bits, requests_of, row_weights
from finemoe.artifact.plotting import model_title, provenance, series_styles
from finemoe.maps.search import TrajectorySearch
from finemoe.maps.store import ExpertMapStore
from finemoe.traces import RoutingTrace

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_REQUEST, _STEP = 0, 9  # of the served requests: which iteration is shown
_HEARD, _DISTANCE = 8, 3  # layers that have spoken, and d
_DARKEST = 0.1  # gate probability that is drawn black, as all above it
_LEAST_ROWS = 20  # decode iterations, which a request shown must have
_METHODS = {
    "expert maps": "expert maps (fine)",
    "request neighbour": "nearest request (coarse)",
    "request history": "this request so far (coarse)",
    "popularity": "all requests (coarse)",
}
_CASES = (("qwen-mini", "questions"), ("gpt-oss-20b", "mixed"))


def maps_drawing(trace: RoutingTrace) -> "Figure":
    """An expert map, the experts that it activates, and how often a request and all requests activate each (concepts.md)."""
    import matplotlib.pyplot as plt

    rows, mine = decode_rows(trace), _rows_of_a_request(trace)
    shares = {
        "activated by that token": row_weights(trace, mine[_STEP : _STEP + 1], "counts")[0],
        f"share of the request's {len(mine)} tokens": row_weights(trace, mine, "counts").mean(axis=0),
        f"share of the tokens of {trace.num_requests} requests": row_weights(trace, rows, "counts").mean(axis=0),
    }
    fig, axes = plt.subplots(1, 4, figsize=(7.0, 2.6), sharey=True)
    image = _heat_map(axes[0], trace.maps(mine[_STEP : _STEP + 1])[0], _DARKEST)
    axes[0].set_title("expert map of one token\n(gate probabilities)", fontsize=6.5)
    fig.colorbar(image, ax=axes[0], location="bottom", pad=0.02, ticks=[0, 0.01, 0.05, _DARKEST], extend="max")
    for ax, (title, values) in zip(axes[1:], shares.items(), strict=True):
        image = _heat_map(ax, values, 1.0)
        ax.set_title(f"{title}\n({entropy_bits(values).mean():.1f} bits a layer)", fontsize=6.5)
    fig.colorbar(image, ax=axes[1:], location="bottom", pad=0.02, ticks=[0, 0.05, 0.25, 0.5, 1], aspect=60)
    for ax in axes:
        ax.set_xlabel("expert")
    axes[0].set_ylabel("MoE layer")
    provenance(fig, "recorded", model_title("qwen-mini"), f"data/traces: {trace.num_requests} requests, decoded tokens")
    return fig


def search_drawing(trace: RoutingTrace) -> "Figure":
    """What a token has shown after some layers, the nearest stored map, and its prediction of a later layer (concepts.md)."""
    import matplotlib.pyplot as plt

    history = trace.split("history")
    served = trace.split("served")
    row = _rows_of_a_request(served)[_STEP]
    observed = served.maps(np.array([row]))[0]
    stored = _nearest(_store_of(history), observed)
    target = _HEARD - 1 + _DISTANCE
    coarse = history.maps(decode_rows(history)).mean(axis=0)

    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(7.0, 2.6), width_ratios=(1, 1, 1.5))
    unseen = observed.copy()
    unseen[_HEARD:] = np.nan
    _heat_map(left, unseen, _DARKEST)
    left.set_title(f"this token's map\nafter {_HEARD} layers", fontsize=7.5)
    left.text(30, 16, "not computed yet", ha="center", fontsize=7)
    _heat_map(middle, stored, _DARKEST)
    middle.set_title(f"the most similar\nof {history.num_rows} stored maps", fontsize=7.5)
    for ax in (left, middle):
        ax.set_xlabel("expert")
        ax.set_ylabel("MoE layer")
        ax.axhline(_HEARD - 0.5, color="#D55E00", linewidth=1.0)
        ax.axhspan(target - 0.5, target + 0.5, fill=False, edgecolor="#D55E00", linewidth=1.0)
    _bars(right, stored[target], coarse[target], set(served.expert_ids[row, target].tolist()))
    right.set_title(f"two predictions of layer {target} (boxed), {_DISTANCE} ahead", fontsize=7.5)
    provenance(fig, "recorded", model_title("qwen-mini"), "data/traces, history and served requests apart")
    return fig


def methods_drawing(table: "pd.DataFrame") -> "Figure":
    """Hit rate against prefetch distance by method, on a miniature and on a real model (the table behind Fig. 4)."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(7.0, 2.5), sharey=True)
    names = list(_METHODS)
    styles = series_styles(["fine", "coarse", "routers", "others"])
    for ax, (model, dataset) in zip(axes, _CASES, strict=True):
        part = table[(table["model"] == model) & (table["dataset"] == dataset)]
        for name, key in zip(names, styles["palette"], strict=True):
            line = part[part["method"] == name].sort_values("distance")
            dash = styles["dashes"][key]
            ax.plot(
                line["distance"],
                line["hit_rate"],
                label=_METHODS[name],
                color=styles["palette"][key],
                marker=styles["markers"][key],
                linestyle="-" if not dash else (0, dash),
            )
            ax.fill_between(line["distance"], line["low"], line["high"], color=styles["palette"][key], alpha=0.15, linewidth=0)
        ax.set_title(model_title(model))
        ax.set_xlabel("prefetch distance, layers")
    axes[0].set_ylabel("demanded experts predicted")
    axes[0].set_ylim(0, 1)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    provenance(fig, "recorded", "data/reference/figures/f4.csv", "equally many experts named by every method; bands: 95 %")
    return fig


def _rows_of_a_request(trace: RoutingTrace) -> np.ndarray:
    """The decode rows of the first request that has enough of them."""
    rows = decode_rows(trace)
    owners, counts = np.unique(requests_of(trace, rows), return_counts=True)
    chosen = owners[counts >= _LEAST_ROWS][_REQUEST]
    return rows[requests_of(trace, rows) == chosen]


def _store_of(history: RoutingTrace) -> ExpertMapStore:
    """All maps of the history."""
    rows = np.arange(history.num_rows)
    embeddings = history.embeddings(rows)
    store = ExpertMapStore(history.num_layers, history.num_experts, embeddings.shape[-1], history.num_rows, _DISTANCE)
    store.add(history.maps(rows), embeddings)
    return store


def _nearest(store: ExpertMapStore, observed: np.ndarray) -> np.ndarray:
    """The stored map whose first layers are most like those observed, [L, J] (Eq. 5)."""
    search = TrajectorySearch(store, 1)
    for layer in range(_HEARD):
        search.observe(layer, observed[None, layer])
    neighbours, _ = search.nearest()
    return store.maps()[neighbours[0]]


def _heat_map(ax: "Axes", values: np.ndarray, darkest: float) -> Any:
    """Values [L, J]: white is 0, black `darkest`, on a scale of square roots, so that small ones show; also in print."""
    from matplotlib.colors import PowerNorm

    norm = PowerNorm(0.5, 0, darkest, clip=True)
    image = ax.imshow(values, cmap="Greys", norm=norm, aspect="auto", interpolation="none")
    ax.grid(visible=False)
    for side in ("top", "right"):
        ax.spines[side].set_visible(True)
    return image


def _bars(ax: "Axes", fine: np.ndarray, coarse: np.ndarray, demanded: set[int]) -> None:
    """Two distributions over a layer's experts, one upwards and one downwards, and which experts are demanded."""
    places = np.arange(len(fine))
    ax.bar(places, fine, width=0.9, color="#0072B2", label="nearest map (fine)")
    ax.bar(places, -coarse, width=0.9, color="#E69F00", label="mean of the history (coarse)")
    ax.axhline(0, color="#000000", linewidth=0.8)
    most = max(float(fine.max()), float(coarse.max()))
    marks = [most * 1.15] * len(demanded)
    ax.plot(sorted(demanded), marks, "v", color="#000000", markersize=4, label="activated", linestyle="none")
    ax.set_ylim(-most * 0.8, most * 2.1)
    ax.set_xlabel("expert")
    ax.set_ylabel("probability")
    ticks = [tick for tick in ax.get_yticks() if abs(tick) <= most]
    ax.set_yticks(ticks, [f"{abs(tick):g}" for tick in ticks])
    ax.legend(loc="upper left", fontsize=6.5)
