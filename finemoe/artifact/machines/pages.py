"""Text about `data/measured` for the pages, generated from its tables so that no page quotes outdated ones.

`python -m finemoe.artifact.docs` inserts it into the pages.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from finemoe.artifact.machines.aims import BITS, checked_steps, shown, targets_table
from finemoe.artifact.machines.cells import SHARE_BOUND, SYSTEM_NAMES, TPOT_BOUND, cells_table, foretold_table, link_peak
from finemoe.artifact.machines.measured import NOT_YET, Measured
from finemoe.artifact.machines.schema import LAUNCHING, PREFETCHED
from finemoe.artifact.markdown import pipe_table
from finemoe.units import format_bytes

_QUOTED_SHARE = 0.25  # of the experts, as in most of the paper's figures


def machine_lines(machines: Sequence[Measured], cards: pd.DataFrame) -> str:
    """For docs/gpu.md: one line per machine or, without a GPU, the predictions for one."""
    gpus = [one for one in machines if one.is_gpu]
    lines = [f"- {_gpu_line(one)}" for one in gpus] or [
        f"**{_sentence(NOT_YET)}**\n",
        *(f"- {line}" for line in _foretold_lines(cards)),
    ]
    return "\n".join([*lines, *(f"- {_cpu_line(one)}" for one in machines if not one.is_gpu)]) + "\n"


def _foretold_lines(cards: pd.DataFrame) -> Iterator[str]:
    for (card, model), part in _groups(cards[cards.expert_memory == _QUOTED_SHARE], "card", "model"):
        yield f"{card}: {model} at {_share(_QUOTED_SHARE)} of its experts is predicted to take {_tpots(part)} per token"


def _tpots(cells: pd.DataFrame) -> str:
    """TPOT of every system, fastest first."""
    ordered = cells.sort_values("tpot_s")
    named = zip(ordered.policy, ordered.tpot_s, strict=True)
    return ", ".join(f"{SYSTEM_NAMES[policy]} {_ms(tpot_s)}" for policy, tpot_s in named)


def _gpu_line(machine: Measured) -> str:
    return f"`{machine.folder.name}`, {machine.title}: " + "; ".join([*_tpots_by_model(machine), *_rest(machine), _link(machine)])


def _cpu_line(machine: Measured) -> str:
    parts = "; ".join([*_rest(machine), _effort(machine)])
    return f"`{machine.folder.name}`, {machine.title}, which shows that everything runs, not how fast a GPU is: {parts}"


def _tpots_by_model(machine: Measured) -> Iterator[str]:
    cells = cells_table(machine)
    for model, part in _groups(cells[cells.expert_memory == _QUOTED_SHARE], "model"):
        yield f"TPOT of {model} at {_share(_QUOTED_SHARE)} of its experts: {_tpots(part)}"
    if cells.empty:
        yield f"TPOT {NOT_YET.partition(' on')[0]}"


def _rest(machine: Measured) -> Iterator[str]:
    """Errors of the predictions made beforehand, and whether the bits are eager's."""
    if len(compared := foretold_table(machine)):
        yield f"predicted beforehand: {_error_summary(compared.tpot_s_error)}"
    yield _bits(machine)


def _bits(machine: Measured) -> str:
    steps, different = checked_steps(machine)
    if not steps:
        return "no step was compared with eager"
    return (
        f"{different:,} of {steps:,} steps differ from eager"
        if different
        else f"all {steps:,} steps checked equal eager's bit for bit"
    )


def _link(machine: Measured) -> str:
    peak = link_peak(machine)
    return "link not measured" if pd.isna(peak) else f"link {peak / 1e9:.1f} GB/s at its peak"


def _effort(machine: Measured) -> str:
    calls = machine.facts.get("calls", [])
    minutes, count = sum(one["seconds"] for one in calls) / 60, len(calls)
    codes = len({one["code"] for one in calls})
    mixed = f", {codes} versions of the code" if codes > 1 else ""
    return f"measured in {minutes:.0f} minutes, {count} call{'s' if count != 1 else ''}{mixed}"


def _error_summary(errors: pd.Series) -> str:
    """Summarise the errors of TPOT."""
    size = errors.abs()
    within = f"{int((size <= TPOT_BOUND).sum())} of {len(size)} cells within {_percent(TPOT_BOUND)}"
    return f"TPOT off by {_percent(size.mean())} on average and {_percent(size.max())} at most, {within}"


def simulator_lines(machines: Sequence[Measured]) -> str:
    """For docs/testbeds.md: the error of the calibrated simulator on each measured machine."""
    lines = [line for one in machines for line in _calibrated(one)]
    if not any(one.is_gpu and len(one.tables["predictions"]) for one in machines):
        lines.append(f"- Against a GPU: {NOT_YET}.")
    return "\n".join(lines) + "\n"


def _calibrated(machine: Measured) -> Iterator[str]:
    predictions = machine.tables["predictions"]
    if predictions.empty:
        return
    size, models = predictions.error.abs(), ", ".join(dict.fromkeys(predictions.model))
    worst: Any = predictions.iloc[int(size.to_numpy().argmax())]
    yield (
        f"- `data/measured/{machine.folder.name}/predictions.csv` ({machine.title}): {len(size)} cells of"
        f" {predictions.policy.nunique()} systems on {models}; {int((size <= 0.1).sum())} are within 10 %, the mean error is"
        f" {_percent(size.mean())}, the largest {_percent(size.max())}"
        f" ({SYSTEM_NAMES[worst.policy]} at {_share(worst.expert_memory)})."
    )


def foretold_section(cards: pd.DataFrame) -> str:
    """For docs/gpu.md: the predictions for every card, one table each."""
    parts = []
    for (card, model), cells in _groups(cards, "card", "model"):
        parts.append(f"{card}, {model}: {_wide(cells)}")
    return "\n".join(parts) or "Nothing was predicted.\n"


def _wide(cells: pd.DataFrame) -> str:
    """Cells as a table with a row for each system and a column for each memory size."""
    texts = [f"{_ms(one.tpot_s)}, {_percent(one.hit_rate)}, {_percent(one.link_use)}" for one in _rows(cells)]
    order = list(dict.fromkeys(cells.policy))
    table = cells.assign(text=texts).pivot(index="policy", columns="expert_memory", values="text").reindex(order).fillna("-")
    shares: list[Any] = table.columns.tolist()
    table.columns = pd.Index([_share(share) for share in shares])
    table.insert(0, "system", [SYSTEM_NAMES[policy] for policy in order])
    return f"TPOT, hit rate and link use by experts in the cache.\n\n{pipe_table(table)}\n"


def measured_section(machines: Sequence[Measured]) -> str:
    """For docs/gpu.md: what each machine found, and on a GPU the targets and what became of the predictions."""
    parts = [] if any(one.is_gpu for one in machines) else [f"**{_sentence(NOT_YET)}**\n"]
    return "\n".join([*parts, *(machine_section(one) for one in machines)])


def machine_section(machine: Measured) -> str:
    """What one machine found; `gpu_bench show` prints it."""
    return "\n".join(_section(machine))


def _section(machine: Measured) -> Iterator[str]:
    yield f"### {machine.title} (`{machine.folder.name}`)\n"
    yield f"torch {machine.facts['torch']}, transformers {machine.facts['transformers']}; {_effort(machine)}.\n"
    yield "\n".join(f"- {line}" for line in _findings(machine)) + "\n"
    for model, cells in _groups(cells_table(machine), "model"):
        yield f"{model}: {_wide(cells)}"
    if machine.is_gpu:
        yield f"Targets:\n\n{pipe_table(_targets(machine))}\n"
        yield from _refuted(machine)


def _findings(machine: Measured) -> Iterator[str]:
    """Findings that need no table."""
    tables = machine.tables
    yield _sentence(_bits(machine))
    for one in _rows(tables["arenas"]):
        pinned = f", {_percent(one.pinned_bytes / one.num_bytes)} page-locked" if machine.is_gpu else ""
        yield f"{format_bytes(one.num_bytes)} of host memory are ready in {one.seconds:.2f} s{pinned}."
    yield from _copied(machine)
    for (model, size), part in _groups(tables["chunks"], "model", "chunk_bytes"):
        yield f"FineMoE on {model} with prefetches in chunks of {format_bytes(size)}: TPOT {_ms(part.tpot_s.mean())}."
    for model, part in _groups(tables["overhead"], "model"):
        seconds = part.groupby("variant", sort=False).seconds_per_token.median()
        if "eager" in seconds:
            ratios = ", ".join(f"{name} {one / seconds['eager']:.2f}" for name, one in seconds.items() if name != "eager")
            yield f"{model}, every expert resident: eager takes {_ms(seconds['eager'])} per token; relative to it: {ratios}."
    yield from _launched(tables["launches"])
    for one in _rows(tables["baselines"]):
        yield f"{one.model} under {one.system} at {_share(one.expert_memory)} of the experts: TPOT {_ms(one.tpot_s)}."
    yield from _missing(tables["skipped"])


def _launched(launches: pd.DataFrame) -> Iterator[str]:
    """What CUDA graphs would save, and whether the bits are the same."""
    is_graph = launches.by_graph.astype(bool)
    singly = launches[~is_graph].set_index(["model", "what"]).seconds
    for one in _rows(launches[is_graph]):
        bits = "the same bits" if one.is_equal else "OTHER BITS"
        before = _time(singly[one.model, one.what])
        yield f"{one.model}, {one.what}: {before} launched kernel by kernel, {_time(one.seconds)} as a CUDA graph, {bits}."


def _missing(skipped: pd.DataFrame) -> Iterator[str]:
    """What was not measured, by reason."""
    for reason, some in _groups(skipped, "reason"):
        names = [f"{one.group} {one.part}" for one in _rows(some)]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        yield f"Not measured ({reason}): {', '.join(names[:4])}{more}."


def _copied(machine: Measured) -> Iterator[str]:
    yield _sentence(_link(machine))
    copies = machine.tables["copies"]
    for one in _rows(copies[copies["mode"] == PREFETCHED]):
        way = f"chunks of {format_bytes(one.chunk_bytes)}, {one.chunks_in_flight} in flight"
        share = _percent(one.bytes_per_s / link_peak(machine))
        yield f"The engine's prefetches ({way}) reach {share} of it while inference is {one.main_thread}."
    concurrent = copies[copies.main_thread == LAUNCHING].sort_values("bytes_per_s").tail(1)
    for one in _rows(concurrent):
        yield f"Best rate during inference: {one.bytes_per_s / 1e9:.1f} GB/s in chunks of {format_bytes(one.chunk_bytes)}."


def _targets(machine: Measured) -> pd.DataFrame:
    table = targets_table(machine)
    reached = [shown(target, value) for target, value in zip(table.target, table.reached, strict=True)]
    checked, _ = checked_steps(machine)
    of_all = [
        f"{value} of {checked:,}" if name == BITS and checked else value
        for name, value in zip(table.target, reached, strict=True)
    ]
    return table.assign(reached=of_all)


def _rows(table: pd.DataFrame) -> Iterator[Any]:
    return iter(table.itertuples(index=False))


def _groups(table: pd.DataFrame, *columns: str) -> Iterator[tuple[Any, pd.DataFrame]]:
    """The rows of each value, or of each tuple of values, in order of appearance."""
    return iter(table.groupby(columns[0] if len(columns) == 1 else list(columns), sort=False))


def _refuted(machine: Measured) -> Iterator[str]:
    """Predictions made beforehand that were off by more than the tolerated error."""
    compared = foretold_table(machine)
    if compared.empty:
        yield "Nothing that had been predicted was measured.\n"
        return
    summary = _error_summary(compared.tpot_s_error)
    yield f"Predictions made before the measurement: {summary}. Cells show prediction, measurement, error:\n"
    yield pipe_table(_errors(compared)) + "\n"
    bounds = f"TPOT off by more than {_percent(TPOT_BOUND)}, hit rate or link use by more than {SHARE_BOUND:g}"
    yield f"Refuted ({bounds}): {_wrong(compared)}.\n"
    yield "\n".join(f"- {line}" for line in _orders(compared)) + "\n"


def _errors(compared: pd.DataFrame) -> pd.DataFrame:
    rows = [
        {
            "model": one.model,
            "system": SYSTEM_NAMES[str(one.policy)],
            "experts in the cache": _share(one.expert_memory),
            "TPOT": f"{_ms(one.foretold_tpot_s)}, {_ms(one.tpot_s)}, {one.tpot_s_error:+.0%}",
            "hit rate": f"{one.foretold_hit_rate:.2f}, {one.hit_rate:.2f}, {one.hit_rate_error:+.2f}",
            "link use": f"{one.foretold_link_use:.2f}, {one.link_use:.2f}, {one.link_use_error:+.2f}".replace("nan", "-"),
        }
        for one in _rows(compared)
    ]
    return pd.DataFrame(rows)


def _wrong(compared: pd.DataFrame) -> str:
    bounds = {
        "TPOT": ("tpot_s_error", TPOT_BOUND),
        "hit rate": ("hit_rate_error", SHARE_BOUND),
        "link use": ("link_use_error", SHARE_BOUND),
    }
    return ", ".join(
        f"{name} in {int((compared[column].abs() > bound).sum())} of {len(compared)} cells"
        for name, (column, bound) in bounds.items()
    )


def _orders(compared: pd.DataFrame) -> Iterator[str]:
    """The predicted and the measured order of the systems by speed."""
    for (model, share), part in _groups(compared.sort_values("expert_memory"), "model", "expert_memory"):
        predicted, found = ([SYSTEM_NAMES[name] for name in part.sort_values(by).policy] for by in ("foretold_tpot_s", "tpot_s"))
        where = f"{model} at {_share(share)}, fastest first"
        yield (
            f"{where}: {', '.join(found)}, as predicted"
            if predicted == found
            else f"{where}: predicted {', '.join(predicted)}; measured {', '.join(found)}"
        )


def claims_section(machines: Sequence[Measured]) -> str:
    """For claims.md: the targets on a GPU, and whether they were met."""
    gpus = [one for one in machines if one.is_gpu]
    return (
        "\n".join(f"{one.title} (`data/measured/{one.folder.name}`):\n\n{pipe_table(_targets(one))}\n" for one in gpus)
        or f"{NOT_YET}\n"
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _percent(rate: float) -> str:
    return "-" if pd.isna(rate) else f"{100 * rate:.0f} %"


def _share(expert_memory: float) -> str:
    return f"{100 * expert_memory:g} %"


def _time(seconds: float) -> str:
    return f"{1e6 * seconds:.3g} µs" if seconds < 1e-3 else _ms(seconds)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{1e3 * seconds:,.0f} ms"
