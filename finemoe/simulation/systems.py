"""The paper's systems under the names in its figures: a policy, an eviction rule, and what a trace must hold for both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finemoe.errors import FinemoeError
from finemoe.policies import policy_named
from finemoe.suggestions import suggestion
from finemoe.traces import RoutingTrace


@dataclass(frozen=True)
class System:
    """One line of a comparison: a policy with its options under an eviction rule (None: the policy's own).

    Attributes:
        needs_embeddings, needs_gates, needs_weights: whether it predicts nothing if a trace has no semantic embeddings, only the
            K activated experts' probabilities (top-k traces, DESIGN 4), or no probabilities at all.
    """

    policy: str
    eviction: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    needs_embeddings: bool = False
    needs_gates: bool = False
    needs_weights: bool = False

    def strides(self, prefetch_distance: int) -> tuple[int, ...]:
        """The lookahead strides that a trace must have for this system."""
        is_speculative = self.options.get("predictor") == "speculative"
        return (prefetch_distance,) if is_speculative else policy_named(self.policy, is_replay=True).lookahead


SYSTEMS = {
    "on-demand (LRU)": System("on-demand"),
    "on-demand (LFU)": System("on-demand", "lfu"),
    "DeepSpeed-Inference": System("deepspeed-inference"),
    "Mixtral-Offloading": System("mixtral-offloading"),
    "ProMoE": System("promoe", needs_weights=True),
    "ProMoE (speculative)": System("promoe", None, {"predictor": "speculative"}),
    "MoE-Infinity": System("moe-infinity"),
    "FineMoE": System("finemoe", needs_weights=True),
    "Belady (on demand)": System("on-demand", "belady"),
}


def left_out(trace: RoutingTrace, systems: Mapping[str, System], prefetch_distance: int) -> dict[str, str]:
    """Systems that this trace cannot drive, with the reason."""
    reasons = {name: _reason(trace, system, prefetch_distance) for name, system in systems.items()}
    return {name: reason for name, reason in reasons.items() if reason}


def chosen_systems(names: Sequence[str]) -> dict[str, System]:
    """The systems of the given names, in the given order.

    Raises:
        FinemoeError: a name is unknown.
    """
    if unknown := [name for name in names if name not in SYSTEMS]:
        raise FinemoeError(f"unknown system {unknown[0]!r}; {suggestion(unknown[0], SYSTEMS)}")
    return {name: SYSTEMS[name] for name in names}


def _reason(trace: RoutingTrace, system: System, prefetch_distance: int) -> str:
    missing = set(system.strides(prefetch_distance)) - set(trace.lookahead_strides)
    if missing:
        return f"routers applied {min(missing)} ahead are not recorded"
    if system.needs_embeddings and trace.embedding_table is None:
        return "semantic embeddings are not recorded"
    if system.needs_weights and not trace.has_weights:
        return "no probabilities are recorded, only ids"
    return "only the activated experts' probabilities are recorded" if system.needs_gates and trace.probs is None else ""
