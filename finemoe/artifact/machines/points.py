"""The data behind the figure of a machine, as a table."""

import pandas as pd

from finemoe.artifact.machines.axes import QUANTITIES
from finemoe.artifact.machines.cells import cells_table, foretold_table
from finemoe.artifact.machines.measured import NOT_YET, Measured


def figure_table(machine: Measured | None, cards: pd.DataFrame) -> pd.DataFrame:
    """The data that `measured_figure` draws, one row per point.

    Args:
        machine: None if nothing was measured.
        cards: predictions by card.
    Returns:
        (source, machine, model, series, quantity, x, value, low, high) in SI units. x is a chunk's size in bytes, a share of all
        experts or a round. source is "measured", "calibrated" (computed after micro-measurements) or "predicted beforehand".
    """
    columns = ["source", "machine", "model", "series", "quantity", "x", "value", "low", "high"]
    tables = [_long(cards.rename(columns={"card": "machine"}), "predicted beforehand", list(QUANTITIES))]
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
        _long(cells, "measured", list(QUANTITIES)),
        _long(baselines, "measured", ["tpot_s"]),
        _long(cells, "calibrated", ["predicted_tpot_s", "error", "limit_tpot_s"]),
        _long(errors, "predicted beforehand", [f"{name}_error" for name in QUANTITIES]),
    ]
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def _long(cells: pd.DataFrame, source: str, quantities: list[str]) -> pd.DataFrame:
    """Reshape cells (model, policy, expert_memory) to a row for each quantity that they have."""
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
