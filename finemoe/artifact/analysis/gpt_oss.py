"""Figures 4, 10, 12 to 15, the comparison of systems and the coverage theory on the real routing of gpt-oss-20b.

The public trace (369 requests, decode only; Apache-2.0) is not part of the project. `python -m finemoe.artifact.analysis.gpt_oss
TRACE` computes the tables that are shipped under data/reference/, so that the figures can show this panel anywhere. The trace has
neither semantic embeddings nor routers applied ahead, so methods that need them are left out. Publisher on GitHub:
AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from finemoe.artifact.analysis.coverage import coverage_table, recorded_maps
from finemoe.artifact.analysis.disagreement import disagreement_table
from finemoe.artifact.analysis.latency import distance_table, systems_on_testbed
from finemoe.artifact.analysis.prediction import prediction_table
from finemoe.artifact.analysis.system_tables import ABLATION, EVICTIONS, eviction_systems, system_table
from finemoe.artifact.plotting import save_table
from finemoe.importers.gpt_oss import MODEL, UNPACKED, load_gpt_oss, sample_path
from finemoe.paths import DATA
from finemoe.simulation.synthetic import statistics_of
from finemoe.simulation.systems import SYSTEMS
from finemoe.traces import RoutingTrace

DATASET = "mixed"
DISTANCE = 3
EXPERT_MEMORIES = [0.0625, 0.125, 0.25, 0.5, 0.75]
SIMULATED_MEMORIES = [0.125, 0.25, 0.5]
CACHE_LIMITS_GB = [6, 12, 24, 48, 96]
CAPACITIES, TRAINING_REQUESTS = [250, 1000, 4000, 16000], [1, 4, 16, 64, 256]
TESTBED, HIGH_END = "6x-rtx3090", "a100-80gb"


def reference_tables(routing: RoutingTrace, store_capacity: int = 1000) -> dict[str, pd.DataFrame]:
    """The tables behind the real panels, by figure."""
    history, served = routing.split("history"), routing.split("served")
    settings: dict[str, Any] = {"prefetch_distance": DISTANCE, "store_capacity": store_capacity}
    return {
        "f4": prediction_table(history, served, list(range(1, 9)), store_capacity),
        "f14a": system_table(history, served, ABLATION, [0.25], **settings),
        "f14b": system_table(history, served, eviction_systems(EVICTIONS), [0.25], **settings),
        "compare_systems": system_table(history, served, SYSTEMS, EXPERT_MEMORIES, **settings),
        "simulated": simulated_table(history, served, settings),
        "disagreement": disagreement_table(
            history, served, TESTBED, 0.25, CAPACITIES, TRAINING_REQUESTS, **settings, model=UNPACKED
        ),
        "coverage": coverage_table(*recorded_maps(routing)),
        "statistics": pd.DataFrame([asdict(statistics_of(routing))]),
        "f15": distance_table(history, served, TESTBED, 0.25, range(1, 9), store_capacity, model=UNPACKED),
    }


def simulated_table(history: RoutingTrace, served: RoutingTrace, settings: dict[str, Any]) -> pd.DataFrame:
    """Every system on both testbeds of the paper, one row per request."""
    settings = {**settings, "model": UNPACKED}
    paper = systems_on_testbed(history, served, TESTBED, SIMULATED_MEMORIES, CACHE_LIMITS_GB, **settings)
    return pd.concat(
        [paper, systems_on_testbed(history, served, HIGH_END, SIMULATED_MEMORIES, [], **settings)], ignore_index=True
    )


def write_tables(
    trace: Annotated[
        Path | None, typer.Argument(help="a .trace, decode_traces.npz, or raw files; default: next to the checkout")
    ] = None,
    folder: Annotated[Path, typer.Option()] = DATA / "reference",
    store_capacity: Annotated[int, typer.Option(help="C, maps")] = 1000,
) -> None:
    """Compute the real panels' tables and write them as CSV."""
    trace = trace or sample_path()
    routing = RoutingTrace.load(trace) if trace.suffix == ".trace" else load_gpt_oss(trace)
    for figure, table in reference_tables(routing, store_capacity).items():
        save_table(table.assign(model=MODEL, dataset=DATASET), folder / f"{figure}_gpt_oss.csv")
        typer.echo(f"{figure}: {len(table)} rows")


if __name__ == "__main__":
    typer.run(write_tables)
