"""Numbers of machines that were measured, from `data/measured`."""

from collections.abc import Iterator

import pandas as pd

from finemoe.artifact.docs.tables import Number, percent, rows, slug
from finemoe.artifact.machines.aims import checked_steps
from finemoe.artifact.machines.cells import SYSTEM_NAMES, cells_table, foretold_table, link_peak
from finemoe.artifact.machines.measured import Measured, machines_in
from finemoe.paths import DATA


def machine_numbers() -> Iterator[Number]:
    """Of every machine: `MACHINE_tpot_SYSTEM_25`, `MACHINE_link`, and so on, by the name of its folder."""
    for machine in machines_in(DATA / "measured"):
        yield from _of(machine, slug(machine.folder.name))


def _of(machine: Measured, name: str) -> Iterator[Number]:
    source = f"measured/{machine.folder.name}"
    yield Number(f"{name}_title", machine.title, f"{source}/machine.json", "the machine")
    steps, different = checked_steps(machine)
    yield Number(f"{name}_steps", f"{steps:,}", f"{source}/correctness.csv", "steps compared with eager, bit for bit")
    yield Number(f"{name}_different", f"{different:,}", f"{source}/correctness.csv", "of those, steps that differ")
    peak = link_peak(machine)
    if machine.is_gpu and not pd.isna(peak):
        yield Number(f"{name}_link", f"{peak / 1e9:.1f} GB/s", f"{source}/copies.csv", "the link's peak")
    for one in rows(cells_table(machine)):
        where = f"{SYSTEM_NAMES[one.policy]}, {one.model} at {100 * one.expert_memory:g} %"
        key = f"{slug(one.policy)}_{1000 * one.expert_memory:g}"
        yield Number(f"{name}_tpot_{key}", f"{1e3 * one.tpot_s:.3g} ms", f"{source}/requests.csv", f"TPOT of {where}")
        yield Number(f"{name}_hits_{key}", percent(one.hit_rate), f"{source}/requests.csv", f"hit rate of {where}")
    if len(compared := foretold_table(machine)):
        errors = compared.tpot_s_error.abs()
        yield Number(
            f"{name}_predicted_mean", percent(errors.mean()), f"{source}/requests.csv", "mean error of the TPOT predicted"
        )
        yield Number(
            f"{name}_predicted_worst", percent(errors.max()), f"{source}/requests.csv", "greatest error of the TPOT predicted"
        )
    predictions = machine.tables["predictions"]
    if len(predictions):
        size = predictions.tpot_s_error.abs() if "tpot_s_error" in predictions else predictions.error.abs()
        yield Number(f"{name}_calibrated_cells", str(len(size)), f"{source}/predictions.csv", "cells of the calibrated simulator")
        yield Number(f"{name}_calibrated_mean", percent(size.mean()), f"{source}/predictions.csv", "mean error of its TPOT")
        yield Number(f"{name}_calibrated_worst", percent(size.max()), f"{source}/predictions.csv", "its greatest error")
