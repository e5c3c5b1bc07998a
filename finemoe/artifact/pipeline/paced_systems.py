"""The learning systems on the live engine over a paced link: on-demand loading, ProMoE, FineMoE and finemoe-plus in alternation.

`python -m finemoe.artifact.pipeline.paced_systems` measures the recorded miniatures on this machine and writes the table. Loading
an expert takes a given time; the costs of the systems themselves are real.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

import finemoe
from finemoe.artifact.pipeline.noise import busy_share
from finemoe.artifact.pipeline.serving import serve
from finemoe.artifact.pipeline.timing import bandwidth_for, paced_link
from finemoe.artifact.plotting import machine, save_table
from finemoe.artifact.prompts import load_prompts
from finemoe.errors import FinemoeError
from finemoe.models.shipped import NAMES
from finemoe.paths import DATA, MINIATURES, ROOT
from finemoe.runtime.loading import load_model
from finemoe.simulation.knowledge import Knowledge
from finemoe.traces import RoutingTrace

SYSTEMS = ("on-demand", "promoe", "finemoe", "finemoe-plus")
_DATASET, _DISTANCE = "questions", 3


def measured_round(
    name: str, trace: RoutingTrace, prompts: Sequence[str], num_tokens: int, expert_memory: float, load_s: float
) -> list[dict[str, Any]]:
    """Run every system once, one row per request: the same requests on one cache that starts cold.

    Args:
        name: name of the miniature.
        trace: its recorded routing; the systems know its history in advance.
        prompts: the requests' prompts.
        num_tokens: tokens generated per request.
        expert_memory: share of all routed experts.
        load_s: time to load one expert, in seconds.
    Raises:
        FinemoeError: the tokens under a system differ from those of the model without an engine.
    """
    model, tokenizer = load_model(str(MINIATURES / name))
    expected = [one.tokens for one in serve(model, tokenizer, list(prompts), num_tokens)]
    knowledge = Knowledge(trace, trace.split("history"), prefetch_distance=_DISTANCE)
    link, rows = paced_link(bandwidth_for(str(MINIATURES / name), load_s)), []
    for system in SYSTEMS:
        options = {"history": knowledge.of(system), "prefetch_distance": _DISTANCE, "link": link}
        with finemoe.offload(model, expert_memory, system, **options) as engine:
            served = serve(model, tokenizer, list(prompts), num_tokens, engine)
        if [one.tokens for one in served] != expected:
            raise FinemoeError(f"{name} under {system}: tokens differ from those without an engine; nothing is written")
        cell, busy = {"model": name, "system": system, "expert_memory": expert_memory}, busy_share()
        rows += [cell | {"request": number} | one.report | {"busy": busy} for number, one in enumerate(served)]
    return rows


def write_table(
    traces: Annotated[Path, typer.Option(help="folder of recorded miniatures")] = ROOT / "results" / "traces",
    output: Annotated[Path, typer.Option()] = DATA / "reference" / "paced_systems_measured.csv",
    models: Annotated[list[str], typer.Option("--model")] = list(NAMES),  # noqa: B006
    expert_memory: Annotated[float, typer.Option(help="share of all routed experts")] = 0.25,
    load_ms: Annotated[float, typer.Option(help="time to load an expert over the link, in ms")] = 5.0,
    num_served: Annotated[int, typer.Option(help="number of requests", min=1)] = 3,
    num_tokens: Annotated[int, typer.Option(help="tokens generated for each request", min=2)] = 16,
    rounds: Annotated[int, typer.Option(help="number of rounds, each of which measures every system", min=1)] = 3,
) -> None:
    """Measure all systems in alternation and write the results of each round as CSV."""
    rows: list[dict[str, Any]] = []
    served = load_prompts(_DATASET).to_pandas().query("split == 'served'").head(num_served)
    for number in range(rounds):
        for name in models:
            trace = RoutingTrace.load(traces / f"{name}-{_DATASET}.trace")
            found = measured_round(name, trace, list(served["prompt"]), num_tokens, expert_memory, load_ms / 1e3)
            rows += [row | {"round": number, "load_ms": load_ms, "machine": machine()} for row in found]
            save_table(pd.DataFrame(rows), output)
    table = pd.DataFrame(rows)
    typer.echo(table.pivot_table(index="model", columns="system", values="tpot_s", aggfunc="median", sort=False).to_string())


if __name__ == "__main__":
    typer.run(write_table)
