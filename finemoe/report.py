"""What a run did, counted the same way under every executor (DESIGN 3 and 4)."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finemoe.units import format_bytes


@dataclass
class Counters:
    """Running counts of one engine or replay; arrays are per MoE layer, [L].

    Attributes:
        hits, late, misses: demanded experts by their state when the gate fired (DESIGN 4).
        recalled, ranked: demanded experts found among, and compared with, equally many top predictions (recall at K).
        prefetched_bytes, demand_bytes: moved ahead of and on demand; wasted_bytes: prefetched, evicted unused.
        stall_s: time that inference waited for weights.
        ttft_s, tpot_s: durations of prefill and of decode iterations, in order.
        skipped_iterations: iterations not shown to the policy because the matcher was too far behind.
    """

    num_layers: int
    hits: np.ndarray = field(init=False)
    late: np.ndarray = field(init=False)
    misses: np.ndarray = field(init=False)
    recalled: np.ndarray = field(init=False)
    ranked: np.ndarray = field(init=False)
    prefetched_bytes: int = field(init=False)
    demand_bytes: int = field(init=False)
    wasted_bytes: int = field(init=False)
    stall_s: float = field(init=False)
    ttft_s: list[float] = field(init=False)
    tpot_s: list[float] = field(init=False)
    skipped_iterations: int = field(init=False)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Count from zero."""
        for name in ("hits", "late", "misses", "recalled", "ranked"):
            setattr(self, name, np.zeros(self.num_layers, dtype=np.int64))
        self.prefetched_bytes = self.demand_bytes = self.wasted_bytes = self.skipped_iterations = 0
        self.stall_s = 0.0
        self.ttft_s, self.tpot_s = [], []


@dataclass(frozen=True)
class Report:
    """A finished reading of the counters.

    Attributes:
        policy, eviction: what decided. expert_memory_bytes: capacity of the expert cache.
        accesses, hits, late, misses: totals over layers; hit_rate: hits / accesses, NaN without accesses.
        recall_at_k: NaN where nothing was predicted.
        prefetched_bytes, demand_bytes, wasted_bytes, stall_s: as in Counters.
        ttft_s, tpot_s: means over prefill and decode iterations in seconds, NaN without any.
        num_prefills, num_decode_steps: iterations of each kind.
        layer_hits, layer_late, layer_misses: per MoE layer.
    """

    policy: str
    eviction: str
    expert_memory_bytes: int
    accesses: int
    hits: int
    late: int
    misses: int
    hit_rate: float
    recall_at_k: float
    prefetched_bytes: int
    demand_bytes: int
    wasted_bytes: int
    stall_s: float
    ttft_s: float
    tpot_s: float
    num_prefills: int
    num_decode_steps: int
    skipped_iterations: int
    layer_hits: tuple[int, ...]
    layer_late: tuple[int, ...]
    layer_misses: tuple[int, ...]

    @classmethod
    def of(cls, counters: Counters, policy: str, eviction: str, expert_memory_bytes: int) -> "Report":
        hits, late, misses = (int(array.sum()) for array in (counters.hits, counters.late, counters.misses))
        accesses = hits + late + misses
        return cls(
            policy=policy,
            eviction=eviction,
            expert_memory_bytes=expert_memory_bytes,
            accesses=accesses,
            hits=hits,
            late=late,
            misses=misses,
            hit_rate=_ratio(hits, accesses),
            recall_at_k=_ratio(int(counters.recalled.sum()), int(counters.ranked.sum())),
            prefetched_bytes=counters.prefetched_bytes,
            demand_bytes=counters.demand_bytes,
            wasted_bytes=counters.wasted_bytes,
            stall_s=counters.stall_s,
            ttft_s=_ratio(sum(counters.ttft_s), len(counters.ttft_s)),
            tpot_s=_ratio(sum(counters.tpot_s), len(counters.tpot_s)),
            num_prefills=len(counters.ttft_s),
            num_decode_steps=len(counters.tpot_s),
            skipped_iterations=counters.skipped_iterations,
            layer_hits=tuple(counters.hits.tolist()),
            layer_late=tuple(counters.late.tolist()),
            layer_misses=tuple(counters.misses.tolist()),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for JSON."""
        from dataclasses import asdict

        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def rows(self) -> list[tuple[str, str]]:
        """The totals as (name, value with unit), for a table."""
        return [
            ("policy / eviction", f"{self.policy} / {self.eviction}"),
            ("expert memory", format_bytes(self.expert_memory_bytes)),
            ("hit rate", f"{self.hit_rate:.1%}  ({self.hits} of {self.accesses} accesses)"),
            ("late / misses", f"{self.late} / {self.misses}"),
            ("recall at K", "no predictions" if np.isnan(self.recall_at_k) else f"{self.recall_at_k:.1%}"),
            ("loaded on demand", format_bytes(self.demand_bytes)),
            ("prefetched", f"{format_bytes(self.prefetched_bytes)}  ({format_bytes(self.wasted_bytes)} evicted unused)"),
            ("waited for weights", f"{self.stall_s:.3f} s"),
            ("TTFT", _seconds(self.ttft_s, self.num_prefills, "prefills")),
            ("TPOT", _seconds(self.tpot_s, self.num_decode_steps, "decode steps")),
        ]

    def summary(self) -> str:
        """The totals as aligned text."""
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")


def _seconds(mean_s: float, count: int, of: str) -> str:
    return f"{mean_s * 1e3:.2f} ms  (mean of {count} {of})" if count else f"no {of}"
