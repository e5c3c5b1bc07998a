"""Predicted time per token of one model on one machine under one system, with expert memory of any size.

Requests are replayed in virtual time over a cache that starts full of the experts used most, as after a while of serving. The
sizes replayed are the same for every question, and more memory never counts as slower: it need not be used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from finemoe.advice.sample import STORE_CAPACITY
from finemoe.advice.sizes import timed_slots
from finemoe.advice.timing import decode_seconds
from finemoe.advice.usage import usage_counts
from finemoe.planning.routing import Routing
from finemoe.policies import make_policy
from finemoe.report import Report
from finemoe.simulation.arrangement import Arrangement
from finemoe.simulation.cost import CostModel, ModelSize
from finemoe.simulation.knowledge import Knowledge
from finemoe.simulation.replay import paced, replay_setup
from finemoe.simulation.systems import System
from finemoe.simulation.testbed import Testbed
from finemoe.simulation.timed import ModelledPace

_DISTANCE = 3  # the engine's default
_ENDLESS_BYTES = 1e18  # what fits is decided elsewhere


@dataclass(frozen=True)
class Curve:
    """Predictions of one system for one routing.

    Attributes:
        slots: numbers of experts in memory, ascending. tpot_s, hit_rate: at each, the best of all up to it.
    """

    slots: np.ndarray
    tpot_s: np.ndarray
    hit_rate: np.ndarray

    def at(self, slots: int) -> tuple[float, float]:
        """Time per token in seconds and hit rate, interpolated."""
        return tuple(float(np.interp(slots, self.slots, values)) for values in (self.tpot_s, self.hit_rate))  # type: ignore[return-value]


@dataclass(frozen=True)
class Prepared:
    """A routing with what the systems learn from its history, and the experts that caches hold at first."""

    routing: Routing
    knowledge: Knowledge
    held: np.ndarray

    @classmethod
    def of(cls, routing: Routing) -> "Prepared":
        """What replays of a routing need; systems learn once, when first asked."""
        served, known = routing.served, routing.served if routing.history is None else routing.history
        distance = min(_DISTANCE, served.num_layers)
        knowledge = Knowledge(served, routing.history, prefetch_distance=distance, store_capacity=STORE_CAPACITY)
        return cls(routing, knowledge, np.argsort(-usage_counts(known), axis=None, kind="stable"))


@dataclass(frozen=True)
class WakingPace(ModelledPace):
    """The modelled speed, with the time that inference takes to go on after it waited for an expert."""

    wake_s: float = 0.0


def curves(
    prepared: Prepared,
    testbed: Testbed,
    size: ModelSize,
    systems: Mapping[str, System],
    context: int = 0,
    wake_s: float = 0.0,
) -> dict[str, Curve]:
    """Replay the systems, by name.

    Args:
        testbed, size: the machine and the model. context: tokens in the KV cache before every request. wake_s: see Clockwork.
    """
    served = prepared.routing.served
    arrangement = Arrangement.one_by_one(served)
    longer = replace(arrangement, contexts=arrangement.contexts + context)
    pace = WakingPace(CostModel(size, replace(testbed, memory_bytes=_ENDLESS_BYTES)), longer, wake_s)
    slots = timed_slots(served.num_layers, served.num_experts, served.top_k)
    return {name: _curve(prepared, pace, system, slots) for name, system in systems.items()}


def _curve(prepared: Prepared, pace: ModelledPace, system: System, slots: Sequence[int]) -> Curve:
    served = prepared.routing.served
    distance, count = min(_DISTANCE, served.num_layers), served.num_layers * served.num_experts
    setup = replay_setup(served, prepared.knowledge.of(system.policy), distance, STORE_CAPACITY)
    policy: Any = make_policy(system.policy, setup, is_replay=True, **system.options)
    choices = [(float(one / count), system.eviction or policy.default_eviction) for one in slots]
    reports = paced(served, system.policy, policy, choices, pace, first_held=prepared.held)
    times = np.minimum.accumulate([_tpot_s(report) for report in reports])
    return Curve(np.array(slots), times, np.maximum.accumulate([report.hit_rate for report in reports]))


def _tpot_s(report: Report) -> float:
    """Mean time of a decode step, without the first request if there are others: systems adapt to it."""
    seconds, steps = decode_seconds(report)
    kept = slice(1, None) if steps[1:].any() else slice(None)
    return float(seconds[kept].sum() / steps[kept].sum())


def prompt_s(cost: CostModel, num_tokens: int, held_share: float) -> float:
    """Estimated time of a prompt: every expert it uses is loaded once, while the other layers compute.

    Args:
        held_share: share of all experts that are in memory.
    """
    size = cost.size
    used = size.num_experts * (1 - (1 - size.top_k / size.num_experts) ** num_tokens)
    rows = np.array([float(num_tokens)])
    tokens_each = np.array([num_tokens * size.top_k / used])
    layer_s = float(cost.before_experts(rows, rows * num_tokens / 2, rows)[0]) + used * float(cost.expert(tokens_each)[0])
    loads_s = used * (1 - held_share) * cost.load() / cost.testbed.devices
    return size.num_layers * max(layer_s, loads_s) + min(layer_s, loads_s) + cost.head()
