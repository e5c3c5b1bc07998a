"""What a run did, counted the same way under every executor (DESIGN 3 and 4; docs/metrics.md defines every number)."""

import itertools
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from finemoe.units import format_bytes


@dataclass(frozen=True)
class RequestReport:
    """One request (or one batch of requests that ran side by side): a prefill and the decode steps after it.

    Attributes:
        accesses, hits, late, misses: demanded experts by their state when the gate fired.
        prefetched_bytes, demand_bytes, wasted_bytes: moved ahead of and on demand; prefetched and evicted unused meanwhile.
        stall_s: time that inference waited for weights. ttft_s: duration of the prefill.
        tpot_s: mean duration of a decode step, NaN without any. num_decode_steps: how many there were.
    """

    accesses: int
    hits: int
    late: int
    misses: int
    prefetched_bytes: int
    demand_bytes: int
    wasted_bytes: int
    stall_s: float
    ttft_s: float
    tpot_s: float
    num_decode_steps: int


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
    hits: list[int] = field(init=False)
    late: list[int] = field(init=False)
    misses: list[int] = field(init=False)
    recalled: int = field(init=False)
    ranked: int = field(init=False)
    prefetched_bytes: int = field(init=False)
    demand_bytes: int = field(init=False)
    wasted_bytes: int = field(init=False)
    stall_s: float = field(init=False)
    ttft_s: list[float] = field(init=False)
    tpot_s: list[float] = field(init=False)
    skipped_iterations: int = field(init=False)
    _marks: list[dict[str, Any]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Count from zero."""
        self.hits, self.late, self.misses = ([0] * self.num_layers for _ in range(3))
        self.recalled = self.ranked = 0
        self.prefetched_bytes = self.demand_bytes = self.wasted_bytes = self.skipped_iterations = 0
        self.stall_s = 0.0
        self.ttft_s, self.tpot_s, self._marks = [], [], []

    def prefetched(self, num_bytes: int, wasted_bytes: int) -> None:
        """An expert is loaded ahead of demand; `wasted_bytes` if what it evicts had been prefetched in vain."""
        self.prefetched_bytes += num_bytes
        self.wasted_bytes += wasted_bytes

    def demanded(self, num_bytes: int, wasted_bytes: int) -> None:
        """An expert is loaded on demand."""
        self.demand_bytes += num_bytes
        self.wasted_bytes += wasted_bytes

    def start_request(self) -> None:
        """A prefill begins: what is counted from now on is the next request's."""
        self._marks.append(self._totals())

    def requests(self) -> tuple[RequestReport, ...]:
        """Every request since the last reset."""
        marks = [*self._marks, self._totals()]
        return tuple(_between(begin, end) for begin, end in itertools.pairwise(marks))

    def _totals(self) -> dict[str, Any]:
        return {
            "hits": sum(self.hits),
            "late": sum(self.late),
            "misses": sum(self.misses),
            "prefetched_bytes": self.prefetched_bytes,
            "demand_bytes": self.demand_bytes,
            "wasted_bytes": self.wasted_bytes,
            "stall_s": self.stall_s,
            "ttft_s": sum(self.ttft_s),
            "decode_s": sum(self.tpot_s),
            "num_decode_steps": len(self.tpot_s),
        }


def _between(begin: dict[str, Any], end: dict[str, Any]) -> RequestReport:
    part = {name: end[name] - begin[name] for name in begin}
    tpot_s = _ratio(part.pop("decode_s"), part["num_decode_steps"])
    return RequestReport(accesses=part["hits"] + part["late"] + part["misses"], tpot_s=tpot_s, **part)


@dataclass(frozen=True)
class Report:
    """A finished reading of the counters.

    Attributes:
        policy, eviction: what decided. expert_memory_bytes: capacity of the expert cache, over all devices.
        accesses, hits, late, misses: totals over layers; hit_rate: hits / accesses, NaN without accesses.
        recall_at_k: NaN where nothing was predicted.
        prefetched_bytes, demand_bytes, wasted_bytes, stall_s: as in Counters.
        useful_bytes, unused_resident_bytes: prefetched and demanded since; prefetched, resident, and not demanded so far.
        ttft_s, tpot_s: means over prefill and decode iterations in seconds, NaN without any.
        num_prefills, num_decode_steps: iterations of each kind.
        skipped_iterations: iterations the policy did not see because its matcher was too far behind.
        layer_hits, layer_late, layer_misses: per MoE layer. requests: the same by request.
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
    useful_bytes: int
    unused_resident_bytes: int
    stall_s: float
    ttft_s: float
    tpot_s: float
    num_prefills: int
    num_decode_steps: int
    skipped_iterations: int
    layer_hits: tuple[int, ...]
    layer_late: tuple[int, ...]
    layer_misses: tuple[int, ...]
    requests: tuple[RequestReport, ...]

    @classmethod
    def of(
        cls, counters: Counters, policy: str, eviction: str, expert_memory_bytes: int, unused_resident_bytes: int = 0
    ) -> "Report":
        hits, late, misses = sum(counters.hits), sum(counters.late), sum(counters.misses)
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
            recall_at_k=_ratio(counters.recalled, counters.ranked),
            prefetched_bytes=counters.prefetched_bytes,
            demand_bytes=counters.demand_bytes,
            wasted_bytes=counters.wasted_bytes,
            useful_bytes=counters.prefetched_bytes - counters.wasted_bytes - unused_resident_bytes,
            unused_resident_bytes=unused_resident_bytes,
            stall_s=counters.stall_s,
            ttft_s=_ratio(sum(counters.ttft_s), len(counters.ttft_s)),
            tpot_s=_ratio(sum(counters.tpot_s), len(counters.tpot_s)),
            num_prefills=len(counters.ttft_s),
            num_decode_steps=len(counters.tpot_s),
            skipped_iterations=counters.skipped_iterations,
            layer_hits=tuple(counters.hits),
            layer_late=tuple(counters.late),
            layer_misses=tuple(counters.misses),
            requests=counters.requests(),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def rows(self) -> list[tuple[str, str]]:
        """The totals as (name, value with unit), for a table."""
        return [
            ("policy / eviction", f"{self.policy} / {self.eviction}"),
            ("expert memory", format_bytes(self.expert_memory_bytes)),
            ("hit rate", f"{self.hit_rate:.1%}  ({self.hits} of {self.accesses} accesses)"),
            ("late / misses", f"{self.late} / {self.misses}"),
            ("recall at K", recall_text(self.recall_at_k)),
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


def recall_text(recall_at_k: float) -> str:
    """A recall as every table shows it."""
    return "no predictions" if np.isnan(recall_at_k) else f"{recall_at_k:.1%}"


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")


def _seconds(mean_s: float, count: int, of: str) -> str:
    return f"{mean_s * 1e3:.2f} ms  (mean of {count} {of})" if count else f"no {of}"
