"""The result of `finemoe.advise`."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Advice:
    """All results; the functions that create the rows document their columns.

    Attributes:
        trace: what was recorded. working_set, request, reuse, concentration: see `usage`. predictability: see `predictability`.
        hit_rates: rows (rule, slots, expert_memory, hit_rate, low, high) with 95 % intervals over requests.
        cliff, knee: see `verdict`; of LRU and of the best causal rule. machine: the timed machine; None without hardware.
        times, prefetching: see `timing` and `verdict`. recommendation: None without times, or if nothing fits.
        slots: the sizes considered. limits: times per token to compare the recommendation with. sensitivity: see `sensitivity`.
        left_out: systems that the trace cannot drive, with the reason. notes, warnings: sentences.
    """

    trace: dict[str, Any]
    working_set: list[dict[str, Any]]
    request: dict[str, Any]
    reuse: list[dict[str, Any]]
    concentration: list[dict[str, Any]]
    predictability: list[dict[str, Any]]
    hit_rates: list[dict[str, Any]]
    cliff: dict[str, Any]
    knee: dict[str, Any]
    slots: list[int] = field(default_factory=list)
    machine: dict[str, Any] | None = None
    times: list[dict[str, Any]] = field(default_factory=list)
    prefetching: list[dict[str, Any]] = field(default_factory=list)
    recommendation: dict[str, Any] | None = None
    limits: dict[str, float] = field(default_factory=dict)
    sensitivity: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain types, ready for JSON."""
        return asdict(self)
