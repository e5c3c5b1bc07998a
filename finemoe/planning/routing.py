"""The routing that a prediction replays: a recorded trace, or synthetic routing with the hit rates of real models.

Each recipe is fitted to the hit rates of a public trace (`finemoe.artifact.analysis.assumed_routing`, which also compares each
with the trace that it was not fitted to). At the sizes of another model, the recipes give a range.
"""

from dataclasses import dataclass

from finemoe.advice.sample import sample_of
from finemoe.errors import FinemoeError
from finemoe.models.shipped import NAMES
from finemoe.paths import DATA
from finemoe.simulation.synthetic import Recipe, synthetic_trace
from finemoe.traces import DECODE, RoutingTrace

RECIPES = {
    "gpt-oss-20b": Recipe(popular=0.167, requested=0.38, persistence=0.197, rank=12),
    "gemma-4-26b": Recipe(popular=0.168, requested=0.28, persistence=0.355, rank=12),
}
_REQUESTS, _TOKENS = 10, 40  # of a synthetic trace; three requests in ten are served
_SERVED_ROWS, _HISTORY_ROWS = 600, 6000  # of a recorded one


@dataclass(frozen=True)
class Routing:
    """Requests to replay and those known beforehand.

    Attributes:
        name: what the routing is. served: the requests to replay, with their prompts if they were recorded. history: other
            requests; None if there are too few.
    """

    name: str
    served: RoutingTrace
    history: RoutingTrace | None


def assumed_routings(num_layers: int, num_experts: int, top_k: int, seed: int = 0) -> list[Routing]:
    """Synthetic routing of these sizes, one for each recipe."""
    found = []
    for name, recipe in RECIPES.items():
        trace = synthetic_trace(recipe, num_layers, num_experts, top_k, _REQUESTS, _TOKENS, seed)
        found.append(Routing(f"like {name}", trace.split("served"), trace.split("history")))
    return found


def shipped_trace(model: str) -> RoutingTrace | None:
    """The recorded routing of a miniature in data/traces; None for any other model."""
    found = sorted((DATA / "traces").glob(f"{model}-*.trace")) if model in NAMES else []
    return RoutingTrace.load(found[0]) if found else None


def recorded_routing(trace: RoutingTrace, name: str, seed: int = 0) -> Routing:
    """Part of a recorded trace, and other requests of it as the history.

    Raises:
        FinemoeError: no tokens are decoded in it.
    """
    sample = sample_of(trace, _SERVED_ROWS, _HISTORY_ROWS, seed)
    if not (sample.served.phase == DECODE).any():
        raise FinemoeError(f"{name}: the trace has only prompts, so it shows nothing about the time per token")
    return Routing(name, sample.served, sample.history)
