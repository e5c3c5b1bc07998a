"""The picture of one measured machine beside what was predicted; what nobody has measured, it says in the panel's place."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from finemoe.artifact.analysis.latency_figure import system_looks
from finemoe.artifact.analysis.measured import (
    SHARE_BOUND,
    SYSTEM_NAMES,
    TPOT_BOUND,
    cells_table,
    foretold_table,
    link_peak,
    models_of,
)
from finemoe.artifact.measured import IDLE, LAUNCHING, MAPPED, NOT_YET, QUEUED, Measured, read_foretold
from finemoe.artifact.plotting import DASHES, log_ticks, provenance, use_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PREDICTED = f"predicted, {NOT_YET}"
_QUANTITIES = {"tpot_s": "TPOT (ms)", "hit_rate": "expert hit rate", "link_use": "link use"}
_ERRORS = {"tpot_s": "error of TPOT (%)", "hit_rate": "error of hit rate", "link_use": "error of link use"}
_BOUNDS = {"tpot_s": TPOT_BOUND, "hit_rate": SHARE_BOUND, "link_use": SHARE_BOUND}
_POLICIES = ("finemoe", "promoe", "moe-infinity", "mixtral-offloading", "deepspeed-inference", "on-demand")
_SHADES = ("#56B4E9", "#0072B2", "#00304D", "#000000")


@dataclass(frozen=True)
class _Row:
    """A row of panels: what is above it, how many there are, and how they are drawn."""

    title: str
    num_panels: int
    draw: Callable[[list["Axes"]], None]


def measured_figure(machine: Measured | None, cards: pd.DataFrame) -> "Figure":
    """The machine's link and overhead, its models' cells and what was predicted of them; without a GPU the cards' predictions.

    Args:
        machine: None where nothing was measured. cards: as `measured.read_all_foretold` found them.
    """
    import matplotlib.pyplot as plt

    use_style()
    rows = list(_rows_of(machine)) + list(_rows_of_cards(machine, cards)) or [_Row("", 1, lambda axes: _say(axes[0], NOT_YET))]
    heights = [2.2 if row.num_panels == 4 else 1.9 for row in rows]  # the first has a legend of its own
    fig = plt.figure(figsize=(7.2, 0.5 + sum(heights)))
    for row, place in zip(rows, fig.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0], strict=True):
        place.suptitle(row.title, x=0.01, ha="left", fontsize=8.5, fontweight="bold")
        row.draw(list(place.subplots(1, row.num_panels, squeeze=False)[0]))
    fig.legend(handles=list(_legend(machine, cards)), loc="outside upper center", ncols=4, columnspacing=1.2)
    _provenance(fig, machine)
    return fig


def figure_table(machine: Measured | None, cards: pd.DataFrame) -> pd.DataFrame:
    """What `measured_figure` draws, one row a point.

    Returns:
        (source, machine, model, series, quantity, x, value, low, high): SI units; x is a chunk's bytes, a share of all experts or
        a round; source is "measured", "calibrated" (computed after micro-measurements) or "predicted beforehand".
    """
    columns = ["source", "machine", "model", "series", "quantity", "x", "value", "low", "high"]
    tables = [_long(cards.rename(columns={"card": "machine"}), "predicted beforehand", list(_QUANTITIES))]
    if machine is not None:
        tables += [_points(machine).assign(machine=machine.title)]
    return pd.concat([table for table in tables if len(table)] or [pd.DataFrame({"source": [NOT_YET]})]).reindex(columns=columns)


def _points(machine: Measured) -> pd.DataFrame:
    cells, copies, overhead = cells_table(machine), machine.tables["copies"], machine.tables["overhead"]
    baselines = machine.tables["baselines"].rename(columns={"system": "policy"})
    errors = foretold_table(machine)
    way = copies["mode"] + ", " + copies.chunks_in_flight.astype(str) + " in flight, inference " + copies.main_thread
    link = pd.DataFrame(
        {"series": way, "x": copies.chunk_bytes, "value": copies.bytes_per_s, "low": copies.low, "high": copies.high}
    )
    times = pd.DataFrame(
        {"model": overhead.model, "series": overhead.variant, "x": overhead["round"], "value": overhead.seconds_per_token}
    )
    tables = [
        link.assign(source="measured", quantity="bytes_per_s"),
        times.assign(source="measured", quantity="seconds_per_token"),
        _long(cells, "measured", list(_QUANTITIES)),
        _long(baselines, "measured", ["tpot_s"]),
        _long(cells, "calibrated", ["predicted_tpot_s", "error", "limit_tpot_s"]),
        _long(errors, "predicted beforehand", [f"{name}_error" for name in _QUANTITIES]),
    ]
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def _long(cells: pd.DataFrame, source: str, quantities: list[str]) -> pd.DataFrame:
    """Cells (model, policy, expert_memory) with a row for each quantity that they have."""
    kept = [name for name in ("machine", "model") if name in cells]
    parts = [
        cells[kept].assign(
            source=source,
            series=cells.policy,
            quantity=name,
            x=cells.expert_memory,
            value=cells[name],
            low=cells.get(f"{name}_low"),
            high=cells.get(f"{name}_high"),
        )
        for name in quantities
        if name in cells
    ]
    return pd.concat(parts, ignore_index=True).dropna(subset="value") if parts else pd.DataFrame()


def _rows_of(machine: Measured | None) -> Iterator[_Row]:
    if machine is None:
        return
    yield _Row(_title(machine), 4, lambda axes: _draw_machine(axes, machine))
    cells, said, compared = cells_table(machine), read_foretold(machine), foretold_table(machine)
    for model in models_of(machine):
        mine = _Model(*(table[table.model == model] for table in (cells, said, compared, machine.tables["baselines"])))
        yield _Row(model, 3, mine.draw_cells)
        if len(mine.compared):
            yield _Row(f"{model}: what had been predicted for this card, less what was measured", 3, mine.draw_errors)


def _rows_of_cards(machine: Measured | None, cards: pd.DataFrame) -> Iterator[_Row]:
    if machine is None or not machine.is_gpu:
        for (card, model), part in cards.groupby(["card", "model"], sort=False):
            yield _Row(f"{card}, {model}: {PREDICTED}", 3, partial(_draw_foretold, said=part))


def _title(machine: Measured) -> str:
    return machine.title if machine.is_gpu else f"{machine.title}: {NOT_YET}"


def _legend(machine: Measured | None, cards: pd.DataFrame) -> Iterator[Any]:
    from matplotlib.lines import Line2D

    is_gpu, measured = machine is not None and machine.is_gpu, [] if machine is None else list(machine.tables["requests"].policy)
    named = set(measured) if is_gpu and measured else {*measured, *cards.policy}
    for policy in _POLICIES:
        if policy in named:
            yield Line2D([], [], **_look(policy))
    black: dict[str, Any] = {"color": "black", "linestyle": ""}
    if len(cards):
        yield Line2D([], [], marker="o", markerfacecolor="white", label="hollow: predicted beforehand", **black)
    if machine is not None and len(machine.tables["predictions"]):
        yield Line2D([], [], color="black", linestyle=":", label="limit of FineMoE's decisions")
    if machine is not None and len(machine.tables["baselines"]):
        yield Line2D([], [], marker="*", markersize=8, label="Accelerate (not ours)", **black)


def _provenance(fig: "Figure", machine: Measured | None) -> None:
    if machine is None:
        provenance(fig, "simulated", NOT_YET)
        return
    level = "random weights, replayed routing" if machine.is_gpu else "memory copies as links; rows of cards: simulated"
    provenance(fig, "measured", machine.title, level, "whiskers: extremes")


def _say(axis: "Axes", text: str) -> None:
    """In the place of what there is not."""
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes, fontsize=7.5, color="#555555")
    axis.set_axis_off()


def _look(policy: str) -> dict[str, Any]:
    """A system's name, colour and marker, as in every other figure, and dashes of its own; grey lines a bit darker than bars."""
    look, name = system_looks()[SYSTEM_NAMES[policy]], SYSTEM_NAMES[policy]
    place = _POLICIES.index(policy) if policy in _POLICIES else len(_POLICIES)
    color = "#7A7A7A" if policy == "on-demand" else look["color"]
    dash = DASHES[place % len(DASHES)]
    return {"label": name, "color": color, "marker": look["marker"], "linestyle": (0, dash) if dash else "-", "linewidth": 1.2}


def _draw_machine(axes: list["Axes"], machine: Measured) -> None:
    copies = machine.tables["copies"]
    for axis, main_thread in zip(axes, (IDLE, LAUNCHING), strict=False):
        _draw_link(axis, copies, main_thread, link_peak(machine))
    axes[1].set_ylabel("")
    drawn = {label: handle for axis in axes[:2] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if drawn:
        axes[0].figure.legend(drawn.values(), drawn, loc="outside lower left", ncols=len(drawn), fontsize=6.5)
    _draw_overhead(axes[2], machine.tables["overhead"])
    _draw_calibrated(axes[3], machine.tables["predictions"])


def _draw_link(axis: "Axes", copies: pd.DataFrame, main_thread: str, peak: float) -> None:
    """Rate by chunk, a line for each number of chunks in flight; the peak and nine tenths of it."""
    axis.set_title(f"link, inference {main_thread}")
    mine = copies[copies.main_thread == main_thread].sort_values("chunk_bytes")
    if mine.empty:
        _say(axis, "not measured")
        return
    unit, name = (2**20, "MiB") if mine.chunk_bytes.max() >= 2**20 else (2**10, "KiB")
    in_chunks = mine[~mine["mode"].isin([QUEUED, MAPPED])]
    for place, (count, line) in enumerate(in_chunks.groupby("chunks_in_flight")):
        look = {"color": _SHADES[place % len(_SHADES)], "marker": "os^D"[place % 4], "label": f"link: {count} in flight"}
        _errorbar(axis, line.chunk_bytes / unit, line, **look)
    for mode, marker, label in ((QUEUED, "P", "all at once"), (MAPPED, "*", MAPPED)):
        if len(points := mine[mine["mode"] == mode]):
            _errorbar(axis, points.chunk_bytes / unit, points, color="#D55E00", marker=marker, linestyle="", label=label)
    sizes = _apart(mine.chunk_bytes / unit)
    for share, style, side, said in ((1.0, "-", "bottom", f"peak {peak / 1e9:.3g}"), (0.9, "--", "top", "90 %")):
        axis.axhline(share * peak / 1e9, color="black", linewidth=0.8, linestyle=style)
        axis.text(0.02, share * peak / 1e9, said, fontsize=6, va=side, transform=axis.get_yaxis_transform())
    axis.set(xscale="log", xlabel=f"chunk ({name})", ylabel="host to slots (GB/s)", ylim=(0, 1.15 * copies.high.max() / 1e9))
    axis.set_xticks(sizes, [f"{size:.3g}" for size in sizes])
    axis.minorticks_off()


def _apart(sizes: pd.Series) -> list[float]:
    """From the largest down, those that leave room for their names."""
    kept: list[float] = []
    for size in sorted(set(sizes), reverse=True):
        if not kept or size < kept[-1] / 1.4:
            kept.append(size)
    return kept


def _errorbar(axis: "Axes", places: pd.Series, rates: pd.DataFrame, **look: Any) -> None:
    middle = rates.bytes_per_s / 1e9
    errors = [middle - rates.low / 1e9, rates.high / 1e9 - middle]
    axis.errorbar(places, middle, yerr=errors, capsize=1.5, elinewidth=0.8, markersize=4, linewidth=1.1, **look)


def _draw_overhead(axis: "Axes", overhead: pd.DataFrame) -> None:
    """Every round over eager's median, and the medians; models side by side."""
    axis.set_title("every expert resident")
    variants, models = list(dict.fromkeys(overhead.variant)), list(dict.fromkeys(overhead.model))
    if "eager" not in variants:
        _say(axis, "not measured")
        return
    for number, model in enumerate(models):
        mine = overhead[overhead.model == model]
        eager_s = mine[mine.variant == "eager"].seconds_per_token.median()
        shift = 0.22 * (number - (len(models) - 1) / 2)
        for variant, part in mine.groupby("variant", sort=False):
            place, ratios = variants.index(str(variant)) + shift, part.seconds_per_token / eager_s
            axis.plot(ratios, [place] * len(ratios), linestyle="", marker="os^D"[number % 4], color="#9A9A9A", markersize=3)
            axis.plot(ratios.median(), place, "|", color="black", markersize=9, markeredgewidth=1.5)
        if len(models) > 1:
            axis.plot([], [], linestyle="", marker="os^D"[number % 4], color="#9A9A9A", markersize=3, label=model)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.axvline(1.05, color="black", linewidth=0.8, linestyle="--")
    axis.set_yticks(range(len(variants)), variants, fontsize=6.5)
    axis.set(xlabel="time over eager's", ylim=(len(variants) - 0.4, -0.6))
    if len(models) > 1:
        axis.legend(fontsize=5.5, loc="lower right", handlelength=0.8, labelspacing=0.2, borderpad=0.1)


def _draw_calibrated(axis: "Axes", predictions: pd.DataFrame) -> None:
    """Errors of what the simulator says after micro-measurements; every model."""
    axis.set_title("calibrated simulator")
    if predictions.empty:
        _say(axis, "not compared")
        return
    for (policy, _), part in predictions.groupby(["policy", "model"], sort=False):
        mine = part.sort_values("expert_memory")
        axis.plot(100 * mine.expert_memory, 100 * mine.error, **_look(str(policy)), markersize=4)
    _band(axis, 100 * TPOT_BOUND)
    axis.set_ylabel("TPOT error (%)")
    _memory_axis(axis, predictions.expert_memory, least_apart=15.0)


@dataclass(frozen=True)
class _Model:
    """One model's rows of `cells_table`, `read_foretold`, `foretold_table` and the table of baselines."""

    cells: pd.DataFrame
    said: pd.DataFrame
    compared: pd.DataFrame
    baselines: pd.DataFrame

    def draw_cells(self, axes: list["Axes"]) -> None:
        """TPOT, hit rate and link use by memory; what had been predicted of these systems is hollow."""
        said = self.said[self.said.policy.isin(self.cells.policy)] if len(self.cells) else self.said
        for axis, (name, label) in zip(axes, _QUANTITIES.items(), strict=True):
            scale, shown = _scale_of(name), self.cells[self.cells[name].notna()]
            if shown.empty and said.empty:
                _say(axis, f"{label.partition(' (')[0]}: not measured")
                continue
            for policy, part in shown.groupby("policy", sort=False):
                _line(axis, part.sort_values("expert_memory"), name, scale, **_look(str(policy)))
            _hollow(axis, said, name, shift=1.5 if len(shown) else 0.0, is_joined=shown.empty)
            axis.set(ylabel=label, title="" if len(shown) else "predicted, not measured")
            _axes_of(axis, name, [*shown.expert_memory, *said.expert_memory])
        self._draw_bounds(axes[0])

    def _draw_bounds(self, axis: "Axes") -> None:
        limit = self.cells[(self.cells.policy == "finemoe") & self.cells.limit_tpot_s.notna()].sort_values("expert_memory")
        axis.plot(100 * limit.expert_memory, 1e3 * limit.limit_tpot_s, color="black", linestyle=":", linewidth=1.2)
        axis.plot(100 * self.baselines.expert_memory, 1e3 * self.baselines.tpot_s, "k*", markersize=8)

    def draw_errors(self, axes: list["Axes"]) -> None:
        """How far the predictions were off, and how far they may be."""
        for axis, (name, label) in zip(axes, _ERRORS.items(), strict=True):
            if self.compared[f"{name}_error"].isna().all():
                _say(axis, f"{label}: not measured")
                continue
            scale = 100.0 if name == "tpot_s" else 1.0
            _hollow(axis, self.compared, f"{name}_error", scale, is_joined=True)
            _band(axis, scale * _BOUNDS[name])
            axis.set_ylabel(label)
            _memory_axis(axis, self.compared.expert_memory)


def _line(axis: "Axes", cells: pd.DataFrame, name: str, scale: float, **look: Any) -> None:
    errors = [scale * (cells[name] - cells[f"{name}_low"]), scale * (cells[f"{name}_high"] - cells[name])]
    errors = [error.clip(lower=0) for error in errors]
    axis.errorbar(100 * cells.expert_memory, scale * cells[name], yerr=errors, capsize=1.5, elinewidth=0.8, **look)


def _draw_foretold(axes: list["Axes"], said: pd.DataFrame) -> None:
    for axis, (name, label) in zip(axes, _QUANTITIES.items(), strict=True):
        _hollow(axis, said, name, is_joined=True)
        axis.set_ylabel(label)
        _axes_of(axis, name, said.expert_memory)


def _hollow(
    axis: "Axes", said: pd.DataFrame, column: str, scale: float = 0.0, shift: float = 0.0, is_joined: bool = False
) -> None:
    """Predictions: markers without a filling, moved aside by `shift` % so that what was measured stays to be seen."""
    for policy, part in said.groupby("policy", sort=False):
        mine = part.sort_values("expert_memory")
        look = _look(str(policy)) | {"markerfacecolor": "white", "label": None} | ({} if is_joined else {"linestyle": ""})
        axis.plot(100 * mine.expert_memory + shift, (scale or _scale_of(column)) * mine[column], **look, markersize=4.5, zorder=3)


def _scale_of(quantity: str) -> float:
    return 1e3 if quantity == "tpot_s" else 1.0


def _band(axis: "Axes", bound: float) -> None:
    """Within which a prediction counts as right."""
    axis.axhspan(-bound, bound, color="#DDDDDD", alpha=0.6, linewidth=0, zorder=0)
    axis.axhline(0, color="black", linewidth=0.8)


def _memory_axis(axis: "Axes", expert_memories: Iterable[float], least_apart: float = 0.0) -> None:
    """Every size as a tick; from the largest down, those that lie far enough apart for their names."""
    shares = sorted({100 * share for share in expert_memories})
    named: list[float] = []
    for share in reversed(shares):
        if not named or named[-1] - share >= least_apart:
            named.append(share)
    axis.set_xticks(named, [f"{share:g}" for share in named], fontsize=6.5)
    axis.set(xlabel="experts in the cache (%)", xlim=(min(shares) - 6, max(shares) + 6))


def _axes_of(axis: "Axes", quantity: str, expert_memories: Iterable[float]) -> None:
    _memory_axis(axis, expert_memories)
    if quantity == "tpot_s":
        axis.set_yscale("log")
        log_ticks(axis.yaxis)
    else:
        axis.set_ylim(0, 1.05)
