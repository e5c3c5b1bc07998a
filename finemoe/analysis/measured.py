"""What machines measured (`data/measured/<machine>/`, made by finemoe.gpu_bench), drawn without measuring anything."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from finemoe.analysis.latency import LATENCY_SYSTEMS
from finemoe.analysis.latency_figure import system_looks
from finemoe.measured import NOT_YET, Measured
from finemoe.plotting import log_ticks, provenance, series_styles, use_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMES = {system.policy: name for name, system in LATENCY_SYSTEMS.items()}
_PANELS = ("link", "TPOT", "overhead", "prediction")


def tpot_on_gpu(machines: Sequence[Measured], expert_memory: float) -> pd.DataFrame:
    """Mean TPOT of every system on the first machine that has a GPU, (model, system, tpot_s, machine); empty without one."""
    columns = ["model", "system", "tpot_s", "machine"]
    gpu = next((one for one in machines if one.is_gpu), None)
    if gpu is None:
        return pd.DataFrame(columns=columns)
    ours = gpu.tables["requests"].rename(columns={"policy": "system"}).replace({"system": _NAMES})
    rows = pd.concat([ours, gpu.tables["baselines"]], ignore_index=True)
    here = rows[rows.expert_memory == expert_memory]
    return here.groupby(["model", "system"], sort=False).tpot_s.mean().reset_index().assign(machine=gpu.title)[columns]


def summary_table(machine: Measured) -> pd.DataFrame:
    """Every cell: (model, policy, expert_memory, ttft_s, tpot_s, hit_rate, bytes per decode step, and what was predicted)."""
    requests = machine.tables["requests"]
    cells = requests.groupby(["model", "policy", "expert_memory"], sort=False)
    sums = cells[["hits", "accesses", "prefetched_bytes", "demand_bytes", "num_decode_steps"]].sum()
    found = cells[["ttft_s", "tpot_s"]].mean()
    found["hit_rate"] = sums.hits / sums.accesses
    found["moved_bytes_per_step"] = (sums.prefetched_bytes + sums.demand_bytes) / sums.num_decode_steps
    predicted = machine.tables["predictions"].drop(columns="measured_tpot_s")
    return found.reset_index().merge(predicted, on=["model", "policy", "expert_memory"], how="left")


def targets_table(machine: Measured) -> pd.DataFrame:
    """What is aimed at on a GPU and what this machine reached, by model: (model, target, aim, reached, is_met).

    The link is judged where it is the bottleneck: where the bytes at its peak take most of the limit, loading on demand.
    """
    rows = []
    for model, part in machine.tables["predictions"].groupby("model", sort=False):
        bound = part[(part.policy == "on-demand") & (part.expert_memory == part.expert_memory.min())]
        ours = part[part.policy == "finemoe"]
        rows += [
            (model, "link use while loading on demand", ">= 0.9", bound.link_use.max(), bound.link_use.max() >= 0.9),
            (model, "TPOT over its limit (median)", "<= 1.15", ours.over_limit.median(), ours.over_limit.median() <= 1.15),
            (model, "largest error of the simulator", "<= 0.15", part.error.abs().max(), part.error.abs().max() <= 0.15),
        ]
        rows += _against_others(str(model), machine.tables)
    return pd.DataFrame(rows, columns=["model", "target", "aim", "reached", "is_met"])


def _against_others(model: str, tables: dict[str, pd.DataFrame]) -> list[tuple[str, str, str, float, bool]]:
    mine = {name: tables[name][tables[name].model == model] for name in ("requests", "baselines", "overhead")}
    found = []
    for system, baseline in mine["baselines"].groupby("system"):
        ours = mine["requests"].merge(baseline[["expert_memory"]].drop_duplicates()).query("policy == 'finemoe'")
        ratio = baseline.tpot_s.mean() / ours.tpot_s.mean()
        found.append((model, f"times faster per token than {system}", ">= 20", ratio, bool(ratio >= 20)))
    seconds = mine["overhead"].groupby("variant").seconds_per_token.median()
    if {"eager", "finemoe"} <= set(seconds.index):
        over = seconds["finemoe"] / seconds["eager"] - 1
        found.append((model, "overhead over eager, all experts resident", "<= 0.05", over, bool(over <= 0.05)))
    return found


def measured_figure(machine: Measured | None) -> "Figure":
    """Link, TPOT by memory, overhead with everything resident, and prediction against measurement; one row for each model."""
    import matplotlib.pyplot as plt

    use_style()
    if machine is None:
        fig, axis = plt.subplots(figsize=(4, 1.5))
        axis.text(0.5, 0.5, NOT_YET, ha="center", va="center")
        axis.set_axis_off()
        return fig
    models = list(dict.fromkeys(machine.tables["requests"].model))
    fig, axes = plt.subplots(len(models), len(_PANELS), figsize=(11.5, 2.7 * len(models)), squeeze=False)
    for row, model in zip(axes, models, strict=True):
        mine = {name: table[table.model == model] for name, table in machine.tables.items() if "model" in table}
        _draw_link(row[0], machine.tables["copies"])
        _draw_tpot(row[1], mine)
        _draw_overhead(row[2], mine["overhead"])
        _draw_predictions(row[3], mine["predictions"])
        row[1].set_title(model)
    handles, names = axes[0][1].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside upper center", ncols=4)
    level = "random weights, replayed routing" if machine.is_gpu else f"miniatures' sizes on pools of host memory; {NOT_YET}"
    provenance(fig, "measured", machine.title, level)
    return fig


def _draw_link(axis: "Axes", copies: pd.DataFrame) -> None:
    largest = copies[copies.transfer_bytes == copies.transfer_bytes.max()]
    looks = series_styles(list(dict.fromkeys(copies["mode"])))
    for mode, part in largest.groupby("mode", sort=False):
        mib, rates = part.chunk_bytes / 2**20, part.bytes_per_s / 1e9
        errors = [rates - part.low / 1e9, part.high / 1e9 - rates]
        look = {"color": looks["palette"][str(mode)], "marker": looks["markers"][str(mode)]}
        axis.errorbar(mib, rates, yerr=errors, capsize=2, label=mode, **look)
    axis.set(xscale="log", xlabel="chunk (MiB)", ylabel="host to slots (GB/s)", ylim=(0, None))
    log_ticks(axis.xaxis)
    axis.legend(fontsize=6)


def _draw_tpot(axis: "Axes", tables: dict[str, pd.DataFrame]) -> None:
    requests, predictions, baselines = (tables[name] for name in ("requests", "predictions", "baselines"))
    for policy, part in requests.groupby("policy", sort=False):
        by_memory = part.groupby("expert_memory").tpot_s
        middle, spread = 1e3 * by_memory.mean(), 1e3 * by_memory.sem().fillna(0.0)
        axis.errorbar(100 * middle.index, middle, yerr=1.96 * spread, capsize=2, **_look(str(policy)))
    limit = predictions[predictions.policy == "finemoe"].sort_values("expert_memory")
    if len(limit):
        dotted: dict[str, Any] = {"color": "black", "linestyle": ":", "label": "limit of FineMoE's decisions"}
        axis.plot(100 * limit.expert_memory, 1e3 * limit.limit_tpot_s, **dotted)
    for system, part in baselines.groupby("system"):
        axis.plot(100 * part.expert_memory, 1e3 * part.tpot_s, "k*", markersize=8, label=f"{system} (not ours)")
    axis.set(yscale="log", xlabel="experts in the cache (%)", ylabel="TPOT (ms)")
    log_ticks(axis.yaxis)


def _look(policy: str) -> dict[str, Any]:
    """A system's name, colour and marker, as in every other figure."""
    look = system_looks()[_NAMES[policy]]
    return {"label": _NAMES[policy], "color": look["color"], "marker": look["marker"]}


def _draw_overhead(axis: "Axes", overhead: pd.DataFrame) -> None:
    eager_s = overhead[overhead.variant == "eager"].seconds_per_token.median()
    variants = list(dict.fromkeys(overhead.variant))
    for place, variant in enumerate(variants):
        ratios = overhead[overhead.variant == variant].seconds_per_token / eager_s
        axis.plot([place] * len(ratios), ratios, "o", color="#8C8C8C", markersize=3)
        axis.plot(place, ratios.median(), "_", color="black", markersize=16)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_xticks(range(len(variants)), variants, fontsize=6.5)
    axis.set(ylabel="decode time over eager's", ylim=(0, None), xlim=(-0.5, len(variants) - 0.5))


def _draw_predictions(axis: "Axes", predictions: pd.DataFrame) -> None:
    for policy, part in predictions.groupby("policy", sort=False):
        axis.plot(1e3 * part.measured_tpot_s, 1e3 * part.predicted_tpot_s, linestyle="", **_look(str(policy)))
    both = predictions[["measured_tpot_s", "predicted_tpot_s"]].to_numpy()
    limits = (800 * both.min(), 1250 * both.max()) if len(both) else (1, 10)
    axis.fill_between(limits, [0.85 * x for x in limits], [1.15 * x for x in limits], color="#CCCCCC", alpha=0.5, linewidth=0)
    axis.set(xscale="log", yscale="log", xlim=limits, ylim=limits, xlabel="measured TPOT (ms)", ylabel="predicted TPOT (ms)")
    log_ticks(axis.xaxis)
    log_ticks(axis.yaxis)
