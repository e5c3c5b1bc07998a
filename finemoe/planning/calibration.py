"""This machine's time of a decode step for a given architecture, measured with random weights; for models that are small enough.

A testbed describes overheads of a typical layer. A model of this very configuration shows them exactly: a step with all experts
resident, under each policy, and a step in which every expert is loaded over the link.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from finemoe.planning.loaded import LoadedModel
from finemoe.simulation.cost import CostModel, ModelSize
from finemoe.simulation.testbed import Testbed
from finemoe.units import parse_rate

LARGEST_BYTES = 256 << 20  # a larger model takes too long to make; its steps are computed from the testbed's rates
_ROUNDS = 7
_QUANTILE = 0.25  # of the rounds: other work on the machine only adds time
_ON_DEMAND = "on-demand"


@dataclass(frozen=True)
class Calibration:
    """Times of one architecture on this machine, in seconds.

    Attributes:
        step_s: a decode step with all experts resident, by policy. waiting_s: one in which every expert is loaded on demand.
        load_s: one expert on the link. prefetch_s: one loaded ahead, chunk by chunk.
    """

    step_s: Mapping[str, float]
    waiting_s: float
    load_s: float
    prefetch_s: float


def is_small(model: LoadedModel) -> bool:
    """Whether a model with random weights is quickly made."""
    return model.all_experts_bytes + model.other_bytes <= LARGEST_BYTES


def calibration(model: LoadedModel, policies: Sequence[str], link: str | None, rounds: int = _ROUNDS) -> Calibration:
    """Measure; variants alternate, and of each the first quartile of the rounds counts.

    Args:
        policies: names of policies. link: a paced link, or None for copies in memory.
    Raises:
        FinemoeError: the model cannot be made.
    """
    import finemoe
    from finemoe.advice.machine_steps import step_of

    told: dict[str, Any] = {"expert_format": model.packed_at_load}
    source, cycle = f"random:{model.source}", model.size.top_k
    with ExitStack() as stack:
        engines = {}
        for policy in {_ON_DEMAND: 0} | dict.fromkeys(policies, 0):
            _, engines[policy] = finemoe.load(source, 1.0, policy, **told, **_known(policy, model))
        _, engines["waiting"] = finemoe.load(source, model.expert_memory_bytes(cycle), _ON_DEMAND, link=link, **told)
        for name, engine in engines.items():
            stack.enter_context(engine)
            if name != "waiting":
                engine.preload()
            stack.enter_context(engine.probe.accounting())
        steps = {name: step_of(engine) for name, engine in engines.items()}
        times = np.array([[step() for step in steps.values()] for _ in range(rounds + 1)])[1:]  # the first warms up
        prefetch_s = _prefetch_s(engines[_ON_DEMAND], link)
    found = dict(zip(steps, np.quantile(times, _QUANTILE, axis=0).tolist(), strict=True))
    load_s = prefetch_s if link is None else model.slot_bytes / parse_rate(link.removeprefix("paced:"))
    return Calibration({name: found[name] for name in engines if name != "waiting"}, found["waiting"], load_s, prefetch_s)


@cache
def remembered(model: LoadedModel, policies: tuple[str, ...], link: str | None) -> Calibration:
    """`calibration`, once per process."""
    return calibration(model, policies, link)


def calibrated(testbed: Testbed, model: LoadedModel, found: Calibration, policy: str) -> tuple[Testbed, ModelSize, float]:
    """The testbed and sizes with which the simulator's steps take the measured times, and `wake_s` (see Clockwork).

    Only times matter: experts have as many of the simulator's chunks as the link really moves. What a layer takes beyond its
    loads when all its experts are missing is the time to wake up, and to compute on cold caches.
    """
    from finemoe.chunks import CHUNK_BYTES, paced_chunk_bytes

    size = model.size
    told_bytes = max(1, round(model.slot_bytes / paced_chunk_bytes(testbed.load_bytes_per_s) * CHUNK_BYTES))
    plain = replace(testbed, layer_overhead_s=0.0, link_latency_s=0.0)
    step_s = found.step_s.get(policy, found.step_s[_ON_DEMAND])
    layer_s = max(0.0, step_s - resident_step_s(CostModel(size, plain))) / size.num_layers
    hidden_s = (size.top_k - 1) * float(CostModel(size, plain).expert(np.ones(1))[0])  # computed during the next load
    beyond_s = (found.waiting_s - found.step_s[_ON_DEMAND]) / size.num_layers - size.top_k * found.load_s
    rate = told_bytes / found.load_s
    changed = replace(
        plain,
        layer_overhead_s=layer_s,
        link_bytes_per_s=rate,
        host_bytes_per_s=rate,
        chunk_overhead_s=max(0.0, found.prefetch_s - found.load_s) / -(-told_bytes // CHUNK_BYTES),
        search_overhead_s=0.0,
        search_bytes_per_s=1e18,  # a policy's own work is part of its step
    )
    return changed, replace(size, packed_bytes=told_bytes), max(0.0, beyond_s + hidden_s)


def resident_step_s(cost: CostModel, context: int = 1) -> float:
    """A decode step of one token with all experts resident, in seconds."""
    one, kept = np.ones(1), np.array([float(context)])
    size = cost.size
    layer_s = float(cost.before_experts(one, kept, kept)[0]) + size.top_k * float(cost.expert(one)[0])
    return size.num_layers * layer_s + cost.head()


def _known(policy: str, model: LoadedModel) -> dict[str, Any]:
    """What a policy that learns knows beforehand: synthetic routing, so that it works as it does after a while."""
    from finemoe.planning.routing import assumed_routings

    if policy == _ON_DEMAND or policy == "no-offload":
        return {}
    size = model.size
    history = assumed_routings(size.num_layers, size.num_experts, size.top_k)[0].history
    assert history is not None
    return {"history": replace(history, model="")}


def _prefetch_s(engine: Any, link: str | None) -> float:
    """Time of one expert that is loaded ahead while others queue, chunk by chunk."""
    import time

    from finemoe.policies.base import Prediction
    from finemoe.runtime.link import make_link

    memory = engine.memories.memories[0]
    if link is not None:
        memory.connect(make_link(memory.pool.device, link))
    memory.reset()
    memory.start_iteration(1)
    num_layers, num_experts = memory.expected.shape
    count = min(8, num_layers)
    probabilities = np.full(num_experts, 0.5, dtype=np.float32)
    begin_s = time.perf_counter()
    for layer in range(count):
        memory.post(1, [Prediction(layer, probabilities, np.arange(1))])
    memory.wait_until_idle(60.0)
    return (time.perf_counter() - begin_s) / count
