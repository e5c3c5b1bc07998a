"""The steps by which an engine attaches to a model and the machine, and their inverses (DESIGN 5)."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from finemoe.cache.expert_cache import ExpertCache
from finemoe.cache.placement import owners_of
from finemoe.cache.rules import rule_named
from finemoe.interrupts import interrupts_wait
from finemoe.maps.warm_up import warm_up
from finemoe.models.layers import MoELayer
from finemoe.packing.warm_up import warm_up as packing_warm_up
from finemoe.policies import make_policy
from finemoe.policies.base import Policy, PolicySetup, Prediction, checked
from finemoe.report import Counters
from finemoe.runtime import gates, seam
from finemoe.runtime.compute_stream import ComputeStream
from finemoe.runtime.devices import DeviceMemories
from finemoe.runtime.expert_layout import ExpertLayout
from finemoe.runtime.guards import Guards
from finemoe.runtime.iteration import Iterations
from finemoe.runtime.layer_runner import LayerRunner
from finemoe.runtime.lifetime import Lifetime
from finemoe.runtime.link import make_link
from finemoe.runtime.lookahead import RoutersAhead
from finemoe.runtime.matcher import Matcher
from finemoe.runtime.memory import ExpertMemory
from finemoe.runtime.observer import Observer
from finemoe.runtime.options import EngineOptions
from finemoe.runtime.parts import Parts
from finemoe.runtime.pool import SlotPool
from finemoe.runtime.probe import Probe
from finemoe.runtime.room import Room
from finemoe.runtime.session import Session
from finemoe.runtime.snapshot import host_buffers
from finemoe.runtime.takeover import ModulesAsTheyWere, Takeover, is_empty
from finemoe.runtime.tiers import ExpertStore
from finemoe.runtime.timeline import Timeline
from finemoe.runtime.undo import UndoStack
from finemoe.runtime.unpacking import Unpacker
from finemoe.runtime.warm_up import warm_up as memory_warm_up


class Attachment:
    """An engine's hold on a model, from `attach` to `undo`.

    Args:
        model: a Transformers MoE model.
        layers: its MoE layers.
        setup: what the policy gets to know about the model.
        options: how the engine runs.
    Attributes:
        parts, iterations: the objects that work while the engine is attached.
        records: the store that holds the experts.
        eviction: name of the eviction rule.
        expert_memory_bytes: total over all devices.
    """

    parts: Parts
    iterations: Iterations
    records: ExpertStore
    eviction: str
    expert_memory_bytes: int
    _num_rooms: int

    def __init__(self, model: nn.Module, layers: list[MoELayer], setup: PolicySetup, options: EngineOptions) -> None:
        self._model, self._layers, self._setup, self._options = model, layers, setup, options
        self._counts = [layer.num_experts for layer in layers]
        self._counters, self._timeline = Counters(setup.num_layers), Timeline()
        self._session = Session()
        self._undo = UndoStack()

    def attach(self, records: ExpertStore | None, keeps_records: bool) -> None:
        """Attach completely, or leave everything unchanged if a step fails.

        Args:
            records: a store that already holds the experts; None moves them out of the model.
            keeps_records: whether this engine closes a given store; otherwise the store is borrowed and stays open for the next
                engine.
        """
        if records is not None and keeps_records:
            self._undo.push(partial(_refuse_runs, self._model, self._layers))
        before = ModulesAsTheyWere(self._model)
        self._undo.push(before.restore)  # reverts what interrupted later steps leave behind
        try:
            with torch.inference_mode(False):  # neither the worker threads nor later training could use inference tensors
                self._attach(records, keeps_records)
                before.forget()
        except BaseException:
            self._close()
            raise

    def undo(self) -> None:
        """Stop the threads and restore the model exactly. An interrupt may come at any moment: either nothing is undone then, or
        everything."""
        try:
            self._close()
        except BaseException:
            if self._session.is_closed:
                _refuse_runs(self._model, [layer for layer in self._layers if is_empty(layer)])
            raise

    def _close(self) -> None:
        try:
            self._run_undo()
        finally:  # again, for steps that an interrupt left
            self._run_undo()

    def _run_undo(self) -> None:
        with torch.inference_mode(False), interrupts_wait():
            self._session.is_closed = True
            self._undo.run()

    def _attach(self, records: ExpertStore | None, keeps_records: bool) -> None:
        """Do everything that `undo` reverts in the opposite order.

        An interrupt may come between any two steps, so the inverse of a step with threads or weights is pushed before the step.
        """
        options, home = self._options, self._options.devices[0]
        layouts = records.layouts if records else [ExpertLayout.in_place(layer, home) for layer in self._layers]
        policy = self._make_policy()
        pools, unpacker = self._make_pools(policy, layouts), self._make_unpacker(layouts)
        holds_weights = records is None
        if records is None:
            records = ExpertStore(layouts, self._counts, options.host_bytes, home.type == "cuda", options.disk_folder)
        self.records = records
        if keeps_records:
            self._undo.push(records.close)
        takeover = Takeover(self._model, self._layers, records, home, holds_weights)
        self._undo.push(takeover.undo)
        takeover.begin()
        if policy.saves:
            self._undo.push(policy.save)  # once no one queries the policy any more
        self.parts = parts = self._make_parts(policy, pools, unpacker)
        self._undo.push(parts.memories.close)  # frees the slots first, to make room on the device for what comes back
        self._undo.push(parts.matcher.close)
        parts.memories.start()
        parts.matcher.start()
        self.iterations = Iterations(parts)
        self._connect(holds_weights)
        if policy.holds_everything:
            parts.memories.preload(is_counted=False)
        # For an engine that is dropped and for process exit; in both cases the model is no longer needed.
        lifetime = Lifetime(self._session, parts.matcher, parts.memories, records if keeps_records else None)
        self._undo.push(lifetime.cancel)
        lifetime.begin()

    def _make_policy(self) -> Policy:
        policy = make_policy(self._options.policy, self._setup, **self._options.policy_options)
        if policy.needs_context:
            # Compile search, selection, the gates' input and the checks now, so that no first token waits for a compiler.
            warm_up()
            gates.warm_up()
            checked([Prediction(0, np.zeros(self._setup.num_experts), np.zeros(1, dtype=np.int64))], self._setup)
        self.eviction = self._options.eviction or policy.default_eviction
        return policy

    def _make_pools(self, policy: Policy, layouts: Sequence[ExpertLayout]) -> list[SlotPool]:
        devices = self._options.devices
        room = Room.of(layouts, self._options.slots)
        slots = room.slots_per_device(_wanted_memory(policy, self._options), sum(self._counts), len(devices))
        self.expert_memory_bytes = room.nbytes(slots, len(devices))
        self._num_rooms = room.num_rooms(slots, len(devices))
        return [SlotPool(layouts, slots, device) for device in devices]

    def _make_unpacker(self, layouts: Sequence[ExpertLayout]) -> Unpacker | None:
        if not self._num_rooms:
            return None
        packing_warm_up()
        unpacker = Unpacker(layouts, self._num_rooms, self._options.devices[0])
        self._undo.push(unpacker.close)
        return unpacker

    def _make_parts(self, policy: Policy, pools: Sequence[SlotPool], unpacker: Unpacker | None) -> Parts:
        setup, home = self._setup, self._options.devices[0]
        is_asynchronous = not policy.is_synchronous if self._options.asynchronous is None else self._options.asynchronous
        memories = self._make_memories(pools, is_asynchronous, policy.least_gain)
        num_snapshots = 1 + setup.num_layers * (1 + 2 * len(policy.lookahead))  # per iteration
        buffers = host_buffers(home, 1 + (num_snapshots if policy.needs_context else 0))  # one more for the selection
        if buffers is not None:
            self._undo.push(buffers.close)
        is_beside = is_asynchronous and policy.needs_context
        return Parts(
            session=self._session,
            policy=policy,
            setup=setup,
            matcher=Matcher(policy, memories.post, self._timeline, is_beside, buffers, memories.speak),
            memories=memories,
            counters=self._counters,
            timeline=self._timeline,
            probe=Probe(),
            buffers=buffers,
            grouped_from=self._options.grouped_from,
            unpacker=unpacker,
        )

    def _make_memories(self, pools: Sequence[SlotPool], is_asynchronous: bool, least_gain: float | None) -> DeviceMemories:
        devices, memories = self._options.devices, []
        memory_warm_up()
        names = ["link"] if len(devices) == 1 else [f"link {index}" for index in range(len(devices))]
        owners = owners_of(self._counts, len(devices))
        exists = np.arange(owners.shape[1]) < np.array(self._counts)[:, None]
        for index, (device, pool, name) in enumerate(zip(devices, pools, names, strict=True)):
            sizes = self._setup.num_layers, self._setup.num_experts, pool.num_slots
            cache = ExpertCache(rule_named(self.eviction), *sizes, least_gain)
            cache.is_local[:] = exists & (owners == index)
            link = make_link(device, self._options.link)
            memory = ExpertMemory(cache, self.records, pool, link, self._counters, self._timeline, is_asynchronous, name)
            self._undo.push(memory.close)
            memories.append(memory)
        return DeviceMemories(memories, owners, self._counts, devices[0])

    def _connect(self, holds_weights: bool) -> None:
        """Let Transformers call into the engine's parts."""
        model, layers, parts, iterations = self._model, self._layers, self.parts, self.iterations
        if parts.policy.lookahead:
            ahead = RoutersAhead(model, layers, parts.policy.lookahead, iterations)
            self._undo.push(ahead.detach)
            ahead.attach()
        observer, stream = Observer(model, layers, iterations), ComputeStream()
        runners = [LayerRunner(layer, parts, iterations, observer, stream) for layer in layers]
        for layer, runner in zip(layers, runners, strict=True):
            self._undo.push(seam.connect(layer.experts, runner))
        self._undo.push(Guards(model, layers, holds_weights).lift)
        self._undo.push(observer.detach)
        wants_gates = parts.policy.needs_context or parts.buffers is not None
        observer.attach({layer.index: runner.hear_router for layer, runner in zip(layers, runners, strict=True) if wants_gates})


def require_possible(
    layers: Sequence[MoELayer], layouts: Sequence[ExpertLayout], setup: PolicySetup, options: EngineOptions
) -> None:
    """Refuse what attaching would refuse, before a checkpoint's weights are read.

    Raises:
        FinemoeError: a name is unknown, or an option is out of range.
    """
    policy = make_policy(options.policy, setup, **options.policy_options)
    rule_named(options.eviction or policy.default_eviction)
    num_experts = sum(layer.num_experts for layer in layers)
    Room.of(layouts, options.slots).slots_per_device(_wanted_memory(policy, options), num_experts, len(options.devices))
    make_link(options.devices[0], options.link).close()


def _wanted_memory(policy: Policy, options: EngineOptions) -> int | float | str:
    return 1.0 if policy.holds_everything else options.expert_memory


def _refuse_runs(model: nn.Module, layers: list[MoELayer]) -> None:
    """Disable layers without experts once the engine is closed: `load` never gave them any, or restoring them failed."""
    for layer in layers:
        seam.disable(layer.experts)
    if layers:
        Guards(model, layers, holds_weights=False)
