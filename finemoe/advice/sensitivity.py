"""How the advice changes with parameters that are often misjudged or could be bought: link, memory, and bits per weight."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from finemoe.advice.machine import Machine
from finemoe.advice.systems import ALL
from finemoe.advice.timing import decode_seconds, timed_reports
from finemoe.advice.verdict import Recommendation
from finemoe.simulation.knowledge import Knowledge
from finemoe.traces import RoutingTrace

_FACTORS = (0.5, 2.0)
_BITS = (16, 8, 4)


def sensitivity_rows(
    served: RoutingTrace, known: Knowledge, machine: Machine, advice: Recommendation, distance: int, seed: int = 0
) -> list[dict[str, Any]]:
    """The fastest system of either kind at the recommended size, with one parameter changed.

    Returns:
        Rows (change, slots, bytes, fits, on_demand_s, prefetching_s, ratio): times per token in seconds; ratio is prefetching
        over on-demand. Bits change the size of an expert, so the same bytes hold more or fewer experts; scales of quantised
        weights and changes of compute time are not modelled.
    """
    systems = {row["system"]: ALL[row["system"]] for row in (advice.on_demand, advice.prefetching) if row is not None}
    found = []
    for changed, named in _machines(machine, advice):
        sizes = [slots for slots, _ in named]
        reports = timed_reports(served, known, changed, systems, sorted(set(sizes)), distance, seed)
        for slots, change in named:
            times = {name: _tpot_s(reports[name, slots]) for name in systems}
            found.append(_row(change, slots, changed, advice, times))
    return found


def _machines(machine: Machine, advice: Recommendation) -> Iterator[tuple[Machine, list[tuple[int, str]]]]:
    """Machines, and the sizes to replay on each with a description."""
    count = machine.size.num_layers * machine.size.num_experts
    slots = advice.slots
    sizes = [machine.whole(slots * factor) for factor in _FACTORS]
    yield machine, [(slots, "as it is"), *((size, f"expert memory x {size / slots:.2g}") for size in sizes if size != slots)]
    for factor in _FACTORS:
        yield _with_link(machine, factor), [(slots, f"link x {factor:g}")]
    for bits in _other_bits(machine):
        size = replace(machine.size, packed_bytes=max(1, machine.size.expert_params * bits // 8))
        same = machine.whole(slots * machine.size.expert_bytes / size.expert_bytes)
        what = (
            "all experts" if same == count and slots * machine.size.expert_bytes > same * size.expert_bytes else "the same bytes"
        )
        yield replace(machine, size=size), [(same, f"experts in {bits} bits, {what}")]


def _with_link(machine: Machine, factor: float) -> Machine:
    bed = machine.testbed
    faster = replace(bed, link_bytes_per_s=bed.link_bytes_per_s * factor, host_bytes_per_s=bed.host_bytes_per_s * factor)
    return replace(machine, testbed=faster)


def _other_bits(machine: Machine) -> Sequence[int]:
    now = 8 * machine.size.expert_bytes / machine.size.expert_params
    return [bits for bits in _BITS if abs(now - bits) > 0.5]


def _tpot_s(report: Any) -> float:
    seconds, steps = decode_seconds(report)
    return float(seconds.sum() / steps.sum())


def _row(change: str, slots: int, machine: Machine, advice: Recommendation, times: dict[str, float]) -> dict[str, Any]:
    on_demand_s = times[advice.on_demand["system"]]
    prefetching_s = float("nan") if advice.prefetching is None else times[advice.prefetching["system"]]
    return {
        "change": change,
        "slots": slots,
        "bytes": slots * machine.size.expert_bytes,
        "fits": machine.fits(slots),
        "on_demand_s": on_demand_s,
        "prefetching_s": prefetching_s,
        "ratio": prefetching_s / on_demand_s,
    }
