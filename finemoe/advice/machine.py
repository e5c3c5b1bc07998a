"""The machine that a trace is timed on: the model's sizes, the testbed, and the memory that is left for experts."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finemoe.errors import FinemoeError
from finemoe.simulation.arrangement import Arrangement
from finemoe.simulation.cost import CostModel, ModelSize, model_size
from finemoe.simulation.testbed import Testbed
from finemoe.traces import RoutingTrace

_UNBOUNDED_BYTES = 1e18  # sizes that do not fit are replayed as well, and marked


@dataclass(frozen=True)
class Machine:
    """A model on a testbed, serving requests of a certain length.

    Attributes:
        size: the model's sizes, with experts as they are transferred. testbed: the machine.
        context: number of tokens that precede every request. longest: tokens of the longest request, including `context`.
    """

    size: ModelSize
    testbed: Testbed
    context: int
    longest: int

    @property
    def kv_cache_bytes(self) -> int:
        """Keys and values of the longest request, in the layers with experts."""
        return self.size.kv_bytes * self.size.num_layers * self.longest

    @property
    def room_bytes(self) -> int:
        """Memory available for expert caches, over all devices: the first device also holds the rest of the model and the keys
        and values, and every other device holds as much of the experts as the first."""
        first = int(self.testbed.memory_bytes) - self.size.resident_bytes - self.kv_cache_bytes
        return max(0, first) * self.testbed.devices

    def whole(self, slots: float) -> int:
        """The largest number of slots up to `slots` that the devices share equally, at least one each, at most all experts."""
        count, devices = self.size.num_layers * self.size.num_experts, self.testbed.devices
        return count if slots >= count else min(count, max(1, int(slots / devices + 1e-9)) * devices)

    def fits(self, slots: int) -> bool:
        """Whether there is memory for caches of `slots` experts in total."""
        share = slots / (self.size.num_layers * self.size.num_experts)
        return CostModel(self.size, self.testbed).cache_bytes(share) <= self.room_bytes

    def unbounded(self) -> Testbed:
        """The testbed with memory for everything, which shows the benefit of more memory."""
        return replace(self.testbed, memory_bytes=_UNBOUNDED_BYTES)

    def arranged(self, trace: RoutingTrace) -> Arrangement:
        """Requests one after the other, where every token attends to `context` additional tokens."""
        arrangement = Arrangement.one_by_one(trace)
        return replace(arrangement, contexts=arrangement.contexts + self.context)


def machine_facts(machine: Machine) -> dict[str, Any]:
    """The properties of a machine that matter for advice."""
    size, testbed = machine.size, machine.testbed
    return {
        "model": size.name,
        "testbed": testbed.title,
        "devices": testbed.devices,
        "memory_bytes": int(testbed.memory_bytes),
        "link_bytes_per_s": testbed.load_bytes_per_s,
        "expert_bytes": size.expert_bytes,
        "expert_load_s": CostModel(size, testbed).load(),
        "resident_bytes": size.resident_bytes,
        "kv_cache_bytes": machine.kv_cache_bytes,
        "longest_request": machine.longest,
        "room_bytes": machine.room_bytes,
    }


def sized(
    trace: RoutingTrace, model: str | Path | ModelSize | None, expert_bits: float | None = None
) -> tuple[ModelSize, tuple[str, ...]]:
    """The sizes of a trace's model, and notes on what was assumed.

    Args:
        model: name of a published configuration, a folder, a config.json, a hub id, or sizes, which count before those that the
            trace states; None for the published model of the trace's sizes. Its number of activated experts may differ from the
            trace's.
        expert_bits: bits of an expert's weight when it is transferred, instead of what the model or the trace states.
    Raises:
        FinemoeError: no sizes are known, or the model has other layers or experts than the trace.
    """
    size, notes = _meant(trace, model)
    if expert_bits is not None:
        return size.in_bits(expert_bits), (*notes, f"experts in {expert_bits:g} bits a weight")
    if trace.expert_bytes and not isinstance(model, ModelSize):
        note = "the size of an expert is what the trace states (the largest, where layers differ)"
        return replace(size, packed_bytes=max(trace.expert_bytes)), (*notes, note)
    return size, notes


def _meant(trace: RoutingTrace, model: str | Path | ModelSize | None) -> tuple[ModelSize, tuple[str, ...]]:
    if model is None:
        return ModelSize.known(trace.num_layers, trace.num_experts, trace.top_k), ()
    size = model if isinstance(model, ModelSize) else model_size(model)
    of_model, of_trace = (size.num_layers, size.num_experts), (trace.num_layers, trace.num_experts)
    if of_model != of_trace:
        texts = ["{} layers x {} experts".format(*one) for one in (of_model, of_trace)]
        raise FinemoeError(f"{size.name} has {texts[0]}, the trace {texts[1]}; name a model of the trace's sizes")
    if size.top_k == trace.top_k:
        return size, ()
    note = f"the trace activates {trace.top_k} experts a token, {size.name} {size.top_k}"  # K may be chosen per run
    return replace(size, top_k=trace.top_k), (note,)
