"""How the routing that plans assume was chosen, and how well it stands for a model that it was not fitted to.

`finemoe plan` has no trace of most models. It replays synthetic routing instead, whose recipe is fitted to the hit rates of the
two public traces of real models, gpt-oss-20b and gemma-4-26b, and which is generated at the sizes of the model asked about.
`python -m finemoe.artifact.analysis.assumed_routing` fits a recipe to each trace and compares hit rates: of a trace, of its own
recipe, and of the other trace's recipe at the sizes of this one.
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from finemoe.advice.sizes import timed_slots
from finemoe.artifact.plotting import save_table
from finemoe.importers import gpt_oss, route_trace
from finemoe.paths import DATA
from finemoe.simulation.curves import hit_curves
from finemoe.simulation.synthetic import Recipe, synthetic_trace
from finemoe.traces import RoutingTrace

RULES = ("lru", "next-use")
_REQUESTS = 12  # of gpt-oss-20b
_RANK = 12  # fits how far ahead gates of gpt-oss-20b predict (finemoe.simulation.synthetic.fitted)
_START = (0.17, 0.26, 0.34)  # the recipe that `fitted` finds from the statistics of gpt-oss-20b
_EVALUATIONS = 40


def real_traces() -> dict[str, RoutingTrace]:
    """Decode rows of both public traces, by model."""
    first = gpt_oss.load_gpt_oss(gpt_oss.sample_path()).split("served").select(np.arange(_REQUESTS))
    return {"gpt-oss-20b": first.decode(), "gemma-4-26b": route_trace.load_route_trace(route_trace.sample_path()).decode()}


def hit_rates(trace: RoutingTrace) -> np.ndarray:
    """Hit rates on demand under each rule at the sizes that advice considers, [rules, sizes]."""
    curves = hit_curves(trace, RULES, np.array(_sizes(trace)))
    return np.array([curves[rule].hits.sum(axis=0) / curves[rule].accesses.sum() for rule in RULES])


def assumed_hit_rates(trace: RoutingTrace, recipe: Recipe, seed: int) -> np.ndarray:
    """The same for synthetic routing of the trace's sizes and length; of a short trace, the mean over several draws."""
    draws = range(max(1, _REQUESTS // trace.num_requests))
    return np.mean([hit_rates(_like(trace, recipe, 100 * seed + draw)) for draw in draws], axis=0)


def fitted_recipe(trace: RoutingTrace, seed: int = 0) -> Recipe:
    """The recipe whose routing, at the trace's sizes and of its length, has hit rates closest to the trace's."""
    from scipy.optimize import minimize

    wanted = hit_rates(trace)

    def error(values: np.ndarray) -> float:
        if min(values) < 0 or values[0] + values[1] > 1 or values[2] > 1:
            return 1.0
        return float(((assumed_hit_rates(trace, _recipe(values), seed) - wanted) ** 2).mean())

    found = minimize(error, _START, method="Nelder-Mead", options={"maxfev": _EVALUATIONS, "xatol": 1e-3, "fatol": 1e-7})
    return _recipe(np.round(found.x, 3))


def comparison(traces: dict[str, RoutingTrace], recipes: dict[str, Recipe], seed: int = 1) -> pd.DataFrame:
    """Hit rates of every trace and of every recipe at its sizes.

    Returns:
        Rows (trace, recipe, popular, requested, persistence, rank, rule, expert_memory, hit_rate, assumed_hit_rate).
    """
    tables = []
    for name, trace in traces.items():
        shares = np.array(_sizes(trace)) / (trace.num_layers * trace.num_experts)
        real = hit_rates(trace)
        for fitted_to, recipe in recipes.items():
            assumed = assumed_hit_rates(trace, recipe, seed)
            for rule, of_trace, of_recipe in zip(RULES, real, assumed, strict=True):
                values = {"expert_memory": shares, "hit_rate": of_trace, "assumed_hit_rate": of_recipe}
                cell = {"trace": name, "recipe": fitted_to, **asdict(recipe), "rule": rule}
                tables.append(pd.DataFrame(cell | values))
    return pd.concat(tables, ignore_index=True)


def _recipe(values: Sequence[float] | np.ndarray) -> Recipe:
    popular, requested, persistence = map(float, values)
    return Recipe(popular, requested, persistence, _RANK)


def _like(trace: RoutingTrace, recipe: Recipe, seed: int) -> RoutingTrace:
    """Synthetic routing of the trace's sizes and length."""
    length = trace.num_rows // trace.num_requests
    make = partial(synthetic_trace, recipe, trace.num_layers, trace.num_experts, trace.top_k)
    return make(trace.num_requests, length, seed).decode()


def _sizes(trace: RoutingTrace) -> list[int]:
    return timed_slots(trace.num_layers, trace.num_experts, trace.top_k)


def write_table(output: Annotated[Path, typer.Option()] = DATA / "reference" / "assumed_routing.csv") -> None:
    """Fit a recipe to each public trace and write the comparison as CSV."""
    traces = real_traces()
    recipes = {name: fitted_recipe(trace) for name, trace in traces.items()}
    table = comparison(traces, recipes)
    save_table(table, output)
    table["difference"] = (table.assumed_hit_rate - table.hit_rate).abs()
    typer.echo(table.groupby(["trace", "recipe", "rule"], sort=False).difference.agg(["mean", "max"]).to_string())
    for name, recipe in recipes.items():
        typer.echo(f"{name}: {recipe}")


if __name__ == "__main__":
    typer.run(write_table)
