"""Compile the kernels of store, forecaster, cache and clock once, into the cache on disk: `python -m finemoe.simulation.warm_up`.

Otherwise the first processes that need them each compile them all.
"""

from finemoe.cache.expert_cache import ExpertCache
from finemoe.cache.rules import RULES
from finemoe.maps.forecaster import Forecaster
from finemoe.maps.warm_up import warm_up_forecasts
from finemoe.simulation.curves import hit_curves
from finemoe.simulation.replay import sweep
from finemoe.simulation.synthetic import Recipe, synthetic_trace

_SIZES = (32, 8, 2)  # those of a published model, which has sizes for a testbed


def warm_up() -> None:
    """Replay a short synthetic trace with an instant link and in virtual time, and create a live cache under every rule."""
    warm_up_forecasts()
    trace = synthetic_trace(Recipe(0.2, 0.3, 0.4, 8), *_SIZES, num_requests=4, tokens_per_request=3)
    history, served = trace.split("history"), trace.split("served")
    Forecaster(*_SIZES).learn_trace(history, passes=1)
    for hardware in (None, "6x-rtx3090"):
        for policy in ("finemoe", "promoe", "deepspeed-inference"):
            sweep(served, policy, [0.1], ["belady"], history=history, hardware=hardware)
    hit_curves(served, ["belady"], [1, 2])
    for rule in RULES.values():
        rule.pointers()
        ExpertCache(rule, num_layers=1, num_experts=1, num_slots=1)


if __name__ == "__main__":
    warm_up()
