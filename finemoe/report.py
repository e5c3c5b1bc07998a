"""The counters and the report of a run, counted the same way by every executor (DESIGN 3, 4; docs/metrics.md defines them)."""

from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from finemoe.draft_counts import NO_DRAFTS, DraftCounts
from finemoe.report_rows import rows_of

REQUESTS_KEPT = 10_000  # of an engine, about 1.2 KB each
PREFETCHED, DEMANDED, WASTED, NUM_MOVED = range(4)  # indices into `Counters.moved`


@dataclass(frozen=True)
class RequestReport:
    """One request (or one batch of requests that ran together): a prefill and the decode steps after it.

    Attributes:
        accesses, hits, late, misses: demanded experts by their state when the gate fired.
        prefetched_bytes, demand_bytes, wasted_bytes: loaded ahead; loaded on demand; prefetched and evicted unused meanwhile.
        stall_s: time that inference waited for weights. ttft_s: duration of the prefill, NaN if unknown.
        tpot_s: mean duration of a decode step, NaN if unknown. num_decode_steps: number of decode steps.
        padding_accesses, padding_bytes, num_unknown_steps, drafts: see Report.
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
    padding_accesses: int = 0
    padding_bytes: int = 0
    num_unknown_steps: int = 0
    drafts: DraftCounts = NO_DRAFTS


@dataclass
class Counters:
    """Running counters of one engine or replay; arrays are per MoE layer, [L]. They grow no further than REQUESTS_KEPT requests.

    Attributes:
        hits, late, misses: demanded experts by their state when the gate fired (DESIGN 4).
        recalled, ranked: for recall at K; demanded experts found among as many top predictions, and demanded experts compared.
        moved: one [NUM_MOVED] int64 array per device, which the device updates and never resets: bytes prefetched; loaded on
            demand; prefetched and evicted unused. prefetched_bytes, demand_bytes, wasted_bytes: sums since the last reset.
        stall_s: time that inference waited for weights.
        padding_accesses, padding_bytes: experts that only padding selected, and the bytes loaded for them.
        drafts: see Report. num_resets: how often the counters were reset.
        timed: summed durations and numbers of prefills and of decode steps, for iterations known to be one or the other.
        num_prefills, num_decode_steps, num_unknown_steps: see Report.
        skipped_iterations: iterations that the policy did not see because the matcher was too far behind.
        num_earlier_requests: see Report.
    """

    num_layers: int
    hits: list[int] = field(init=False)
    late: list[int] = field(init=False)
    misses: list[int] = field(init=False)
    recalled: int = field(init=False)
    ranked: int = field(init=False)
    moved: list[np.ndarray] = field(init=False, default_factory=list)
    _moved_before: list[np.ndarray] = field(init=False, repr=False)  # `moved` at the last reset
    stall_s: float = field(init=False)
    padding_accesses: int = field(init=False)
    padding_bytes: int = field(init=False)
    drafts: DraftCounts = field(init=False)
    num_resets: int = field(init=False, default=-1)
    timed: dict[str, float] = field(init=False)
    num_prefills: int = field(init=False)
    num_decode_steps: int = field(init=False)
    num_unknown_steps: int = field(init=False)
    skipped_iterations: int = field(init=False)
    num_earlier_requests: int = field(init=False)
    _prefills_s: deque[float] = field(init=False, repr=False)  # the last ones, which may still be corrected
    _requests: dict[int, dict[str, Any]] = field(init=False, repr=False)  # counts of each request kept that is not current
    _current: int | None = field(init=False, repr=False)
    _mark: dict[str, Any] = field(init=False, repr=False)  # the totals when the current request was entered

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Set all counters to zero."""
        self.hits, self.late, self.misses = ([0] * self.num_layers for _ in range(3))
        self.recalled = self.ranked = 0
        self.skipped_iterations = 0
        self._moved_before = [moved.copy() for moved in self.moved]
        self.padding_accesses = self.padding_bytes = 0
        self.drafts, self.num_resets = NO_DRAFTS, self.num_resets + 1
        self.num_prefills = self.num_decode_steps = self.num_unknown_steps = 0
        self.stall_s, self.num_earlier_requests = 0.0, 0
        self.timed = {"prefill_s": 0.0, "timed_prefills": 0, "decode_s": 0.0, "timed_steps": 0}
        self._prefills_s = deque(maxlen=REQUESTS_KEPT)
        self._requests, self._current, self._mark = {}, None, {}

    def moved_by_device(self) -> np.ndarray:
        """Add a device and return the array in which it counts its bytes."""
        moved = np.zeros(NUM_MOVED, dtype=np.int64)
        self.moved.append(moved)
        self._moved_before.append(moved.copy())
        return moved

    @property
    def prefetched_bytes(self) -> int:
        """Bytes loaded ahead of demand."""
        return self._moved(PREFETCHED)

    @property
    def demand_bytes(self) -> int:
        """Bytes loaded on demand, other than for rejected drafts alone."""
        return self._moved(DEMANDED) - self.drafts.rejected_bytes

    @property
    def wasted_bytes(self) -> int:
        """Bytes prefetched and evicted before anything demanded them."""
        return self._moved(WASTED)

    def _moved(self, place: int) -> int:
        return sum(int(moved[place] - before[place]) for moved, before in zip(self.moved, self._moved_before, strict=True))

    def enter_request(self, number: int) -> None:
        """Attribute all counts to this request until another one is entered; a request may be entered more than once."""
        if number != self._current:
            self._requests.update(self._running())
            self._make_room(number)
            self._current, self._mark = number, self._totals()

    def count_prefill(self, duration_s: float) -> None:
        """Count a finished prefill."""
        self.num_prefills += 1
        self._time_prefill(duration_s)

    def correct_prefill(self, duration_s: float, by_s: float | None) -> None:
        """Extend a prefill that was counted with `duration_s` by `by_s`; None if its true duration is unknown."""
        if duration_s not in self._prefills_s:
            return  # another thread has just reset the counters, or it is too long ago
        self._prefills_s.remove(duration_s)
        self.timed["prefill_s"] -= duration_s
        self.timed["timed_prefills"] -= 1
        if by_s is None:
            self.num_unknown_steps += 1
        else:
            self._time_prefill(duration_s + by_s)

    def _time_prefill(self, duration_s: float) -> None:
        self._prefills_s.append(duration_s)
        self.timed["prefill_s"] += duration_s
        self.timed["timed_prefills"] += 1

    def count_decode_step(self, duration_s: float) -> None:
        """Count a finished decode step."""
        self.num_decode_steps += 1
        self.timed["decode_s"] += duration_s
        self.timed["timed_steps"] += 1

    def count_drafts(self, counts: DraftCounts) -> None:
        """Count drafts."""
        self.drafts = self.drafts.plus(counts)

    def requests(self) -> tuple[RequestReport, ...]:
        """The last requests since the last reset, at most REQUESTS_KEPT of them, by number."""
        counts = {**self._requests, **self._running()}
        return tuple(_request(counts[number]) for number in sorted(counts))

    def _make_room(self, number: int) -> None:
        """Leave out the earliest requests if there would be too many with this one."""
        while len(self._requests) - (number in self._requests) >= REQUESTS_KEPT:
            del self._requests[next(earlier for earlier in self._requests if earlier != number)]
            self.num_earlier_requests += 1

    def _running(self) -> dict[int, dict[str, Any]]:
        """Counts of the current request so far, by its number."""
        if self._current is None:
            return {}
        totals, before = self._totals(), self._requests.get(self._current, {})
        since = {name: totals[name] - self._mark[name] + before.get(name, 0) for name in totals if name != "drafts"}
        drafts: DraftCounts = totals["drafts"].minus(self._mark["drafts"])
        return {self._current: since | {"drafts": drafts.plus(before.get("drafts", NO_DRAFTS))}}

    def _totals(self) -> dict[str, Any]:
        return {
            "hits": sum(self.hits),
            "late": sum(self.late),
            "misses": sum(self.misses),
            "prefetched_bytes": self.prefetched_bytes,
            "demand_bytes": self.demand_bytes,
            "wasted_bytes": self.wasted_bytes,
            "stall_s": self.stall_s,
            "padding_accesses": self.padding_accesses,
            "padding_bytes": self.padding_bytes,
            **self.timed,
            "num_decode_steps": self.num_decode_steps,
            "num_unknown_steps": self.num_unknown_steps,
            "drafts": self.drafts,
        }


def _request(counts: dict[str, Any]) -> RequestReport:
    part = dict(counts)
    ttft_s = _ratio(part.pop("prefill_s"), part.pop("timed_prefills"))
    tpot_s = _ratio(part.pop("decode_s"), part.pop("timed_steps"))
    return RequestReport(accesses=part["hits"] + part["late"] + part["misses"], ttft_s=ttft_s, tpot_s=tpot_s, **part)


@dataclass(frozen=True)
class Report:
    """A snapshot of the counters.

    Attributes:
        policy, eviction: names of the policy and of the eviction rule.
        expert_memory_bytes: capacity of the expert cache, over all devices.
        recall_at_k: NaN if nothing was predicted.
        prefetched_bytes, demand_bytes, wasted_bytes, stall_s: see Counters.
        useful_bytes: prefetched and demanded since. unused_resident_bytes: prefetched, resident, and not yet demanded.
        ttft_s, tpot_s: mean duration of a prefill and of a decode step in seconds, NaN if none is known.
        num_prefills, num_decode_steps: how many of each.
        num_unknown_steps: iterations that are not known to be entirely a prefill or a decode step; neither mean includes them.
        padding_accesses, padding_bytes: experts that only padding selected, and bytes loaded for them; no other count has them.
        drafts: what became of drafted tokens, and the experts that only rejected ones selected; no other count has these.
        skipped_iterations: iterations that the policy did not see because its matcher was too far behind.
        layer_hits, layer_late, layer_misses: per MoE layer.
        requests: the same per request, for the last REQUESTS_KEPT of an engine and all of a replay. Other numbers count all.
        num_earlier_requests: how many earlier requests are not in `requests`. One that goes on afterwards is there again, with
            what it did since.
    """

    policy: str
    eviction: str
    expert_memory_bytes: int
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
    num_unknown_steps: int = 0
    padding_accesses: int = 0
    padding_bytes: int = 0
    drafts: DraftCounts = NO_DRAFTS
    num_earlier_requests: int = 0

    @classmethod
    def of(
        cls, counters: Counters, policy: str, eviction: str, expert_memory_bytes: int, unused_resident_bytes: int = 0
    ) -> "Report":
        return cls(
            policy=policy,
            eviction=eviction,
            expert_memory_bytes=expert_memory_bytes,
            recall_at_k=_ratio(counters.recalled, counters.ranked),
            prefetched_bytes=counters.prefetched_bytes,
            demand_bytes=counters.demand_bytes,
            wasted_bytes=counters.wasted_bytes,
            useful_bytes=counters.prefetched_bytes - counters.wasted_bytes - unused_resident_bytes,
            unused_resident_bytes=unused_resident_bytes,
            stall_s=counters.stall_s,
            ttft_s=_ratio(counters.timed["prefill_s"], counters.timed["timed_prefills"]),
            tpot_s=_ratio(counters.timed["decode_s"], counters.timed["timed_steps"]),
            num_prefills=counters.num_prefills,
            num_decode_steps=counters.num_decode_steps,
            skipped_iterations=counters.skipped_iterations,
            layer_hits=tuple(counters.hits),
            layer_late=tuple(counters.late),
            layer_misses=tuple(counters.misses),
            requests=counters.requests(),
            num_unknown_steps=counters.num_unknown_steps,
            padding_accesses=counters.padding_accesses,
            padding_bytes=counters.padding_bytes,
            drafts=counters.drafts,
            num_earlier_requests=counters.num_earlier_requests,
        )

    @property
    def hits(self) -> int:
        """Demanded experts that were resident when the gate fired, over all layers."""
        return sum(self.layer_hits)

    @property
    def late(self) -> int:
        """Demanded experts whose load had begun when the gate fired."""
        return sum(self.layer_late)

    @property
    def misses(self) -> int:
        """Demanded experts that were neither resident nor being loaded when the gate fired."""
        return sum(self.layer_misses)

    @property
    def accesses(self) -> int:
        """All demanded experts."""
        return self.hits + self.late + self.misses

    @property
    def hit_rate(self) -> float:
        """Hits / accesses; NaN if there were no accesses."""
        return _ratio(self.hits, self.accesses)

    @property
    def tokens_per_step(self) -> float:
        """Mean number of tokens that a decode step generates for a sequence: 1 without drafts; NaN if it is unknown."""
        return self.drafts.tokens_per_step(self.num_decode_steps)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain types, ready for JSON: policy and memory, the totals, and the rest."""
        rest = asdict(self)
        decided = {name: rest.pop(name) for name in ("policy", "eviction", "expert_memory_bytes")}
        totals = {name: getattr(self, name) for name in ("accesses", "hits", "late", "misses", "hit_rate", "tokens_per_step")}
        everything = {**decided, **totals, **rest}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in everything.items()}

    def rows(self) -> list[tuple[str, str]]:
        """The totals as (name, value with unit) pairs, for a table."""
        return rows_of(self)

    def summary(self) -> str:
        """The totals as aligned text."""
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")
