"""What advice consists of."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Advice:
    """Results; the functions that make the rows document their columns.

    Attributes:
        trace: what was recorded. working_set, request, reuse, concentration: `usage`. predictability: `predictability`.
        hit_rates: rows (rule, slots, expert_memory, hit_rate, low, high) with 95 % intervals over requests.
        cliff, knee: `verdict`, of LRU and of the best causal rule. machine: of the times; None without hardware.
        times, prefetching: `timing` and `verdict`. recommendation: None without times, or where nothing fits.
        slots: the sizes considered. limits: times per token to compare the recommendation with. sensitivity: `sensitivity`.
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
        """Plain types only, ready for JSON."""
        return asdict(self)
