"""What a trace is timed on: the model's sizes, the testbed, and what of its memory experts may have."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finemoe.errors import FinemoeError
from finemoe.simulation.arrangement import Arrangement
from finemoe.simulation.cost import CostModel, ModelSize, model_size
from finemoe.simulation.testbed import Testbed
from finemoe.traces import RoutingTrace

_UNBOUNDED_BYTES = 1e18  # so that sizes that do not fit are replayed, too, and marked


@dataclass(frozen=True)
class Machine:
    """A model on a testbed, serving requests of a certain length.

    Attributes:
        size: what the model weighs, as its experts are moved. testbed: the machine. context: tokens that stand before every
            request. longest: tokens of the longest request, `context` included.
    """

    size: ModelSize
    testbed: Testbed
    context: int
    longest: int

    @property
    def kv_cache_bytes(self) -> int:
        """Keys and values of the longest request, in the layers that have experts."""
        return self.size.kv_bytes * self.size.num_layers * self.longest

    @property
    def room_bytes(self) -> int:
        """What expert caches may take, over all devices: the first holds the rest of the model and the keys and values, and the
        others as much of the experts as it does."""
        first = int(self.testbed.memory_bytes) - self.size.resident_bytes - self.kv_cache_bytes
        return max(0, first) * self.testbed.devices

    def whole(self, slots: float) -> int:
        """Of so many slots those that the devices can share equally, at least one each; all experts if there are no more."""
        count, devices = self.size.num_layers * self.size.num_experts, self.testbed.devices
        return count if slots >= count else min(count, max(1, int(slots / devices + 1e-9)) * devices)

    def fits(self, slots: int) -> bool:
        """Whether caches of so many experts in all have room."""
        share = slots / (self.size.num_layers * self.size.num_experts)
        return CostModel(self.size, self.testbed).cache_bytes(share) <= self.room_bytes

    def unbounded(self) -> Testbed:
        """The testbed with memory for everything, so that one sees what more memory would be worth."""
        return replace(self.testbed, memory_bytes=_UNBOUNDED_BYTES)

    def arranged(self, trace: RoutingTrace) -> Arrangement:
        """Requests one after the other, every token attending to `context` tokens more than its request has."""
        arrangement = Arrangement.one_by_one(trace)
        return replace(arrangement, contexts=arrangement.contexts + self.context)


def machine_facts(machine: Machine) -> dict[str, Any]:
    """What of a machine matters for advice."""
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


def sized(trace: RoutingTrace, model: str | Path | None, expert_bits: float | None = None) -> tuple[ModelSize, tuple[str, ...]]:
    """The sizes that a trace's model has, and what was assumed.

    Args:
        model: a published configuration's name, a folder, a config.json or a hub id; None for the published model of the trace's
            sizes. It may activate another number of experts than the trace.
        expert_bits: of a weight of an expert as it is moved, instead of what the model or the trace says.
    Raises:
        FinemoeError: none is known, or it has other layers or experts.
    """
    size, notes = _meant(trace, model)
    if expert_bits is not None:
        packed = max(1, round(size.expert_params * expert_bits / 8))
        return replace(size, packed_bytes=packed), (*notes, f"experts in {expert_bits:g} bits a weight")
    if trace.expert_bytes:
        note = "the size of an expert is what the trace states (the largest, where layers differ)"
        return replace(size, packed_bytes=max(trace.expert_bytes)), (*notes, note)
    return size, notes


def _meant(trace: RoutingTrace, model: str | Path | None) -> tuple[ModelSize, tuple[str, ...]]:
    if model is None:
        return ModelSize.known(trace.num_layers, trace.num_experts, trace.top_k), ()
    size = model_size(model)
    of_model, of_trace = (size.num_layers, size.num_experts), (trace.num_layers, trace.num_experts)
    if of_model != of_trace:
        texts = ["{} layers x {} experts".format(*one) for one in (of_model, of_trace)]
        raise FinemoeError(f"{model} has {texts[0]}, the trace {texts[1]}; name a model of the trace's sizes")
    if size.top_k == trace.top_k:
        return size, ()
    note = f"the trace activates {trace.top_k} experts a token, {size.name} {size.top_k}"  # which is a choice of the run
    return replace(size, top_k=trace.top_k), (note,)
