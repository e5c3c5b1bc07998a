"""Runs an offloaded layer's experts when Transformers calls them: leases their weights and computes the layer."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from finemoe.errors import EngineError
from finemoe.models.layers import MoELayer
from finemoe.runtime import seam
from finemoe.runtime.compute_stream import ComputeStream
from finemoe.runtime.devices import Leases
from finemoe.runtime.gates import GateOutput, scores_of
from finemoe.runtime.grouped import grouped_forward
from finemoe.runtime.iteration import Iteration, Iterations
from finemoe.runtime.lean import is_common
from finemoe.runtime.lease import Lease
from finemoe.runtime.observer import Observer
from finemoe.runtime.parts import Parts
from finemoe.runtime.selection_reader import SelectionReader
from finemoe.runtime.unpacking import Unpacked

_NONE = np.empty(0, dtype=np.int64)


class LayerRunner:
    """One layer's experts, as called through the seam.

    Args:
        layer: the layer.
        parts: the engine's parts.
        iterations: the forwards that the layer runs in.
        observer: knows the calling thread's forward.
        stream: the stream on which layers compute.
    """

    def __init__(self, layer: MoELayer, parts: Parts, iterations: Iterations, observer: Observer, stream: ComputeStream) -> None:
        self._layer, self._parts, self._iterations, self._observer = layer, parts, iterations, observer
        self._stream = stream
        self._router_output: Any = None  # the router's last output
        self._selection = SelectionReader(parts.buffers)
        self._names = tuple(layer.expert_parameters())
        self._is_lean = is_common(type(layer.experts))  # type: ignore[arg-type]
        self._is_packed = parts.unpacker is not None and parts.unpacker.is_packed(layer.index)

    def __call__(
        self, module: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """The layer's output, [T, H]; hidden_states: [T, H]; top_k_index, top_k_weights: [T, K]."""
        session = self._parts.session
        depth = session.depth
        try:
            try:
                self._enter(hidden_states)
                return self._run(module, hidden_states, top_k_index, top_k_weights)
            finally:
                session.leave(depth)
        finally:
            if not depth:  # again, in case of an interrupt before it; within a forward, the observer does this
                session.leave(0)

    def hear_router(self, module: nn.Module, args: Any, output: Any) -> None:
        """The layer's router has run, possibly on its own and outside a forward."""
        if not self._parts.session.is_anothers:
            self._router_output = output
            self._selection.begin(output)

    def _enter(self, hidden_states: torch.Tensor) -> None:
        if hidden_states.requires_grad and torch.is_grad_enabled():
            raise EngineError(
                "an offloaded model runs inference only; call it under torch.no_grad(), or close the engine to train"
            )
        self._iterations.raise_failures()
        if not self._parts.session.enter():  # inner modules may be called directly, without the model's forward
            raise EngineError("this engine was closed while the layer waited; call the model again")
        self._iterations.enter_layer(self._layer.index, hidden_states.shape[0], self._observer)
        if hidden_states.is_cuda:
            self._stream.follow(hidden_states.device)

    def _run(
        self, module: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        begin_s = time.perf_counter()
        iteration, parts, index = self._iterations.current, self._parts, self._layer.index
        iteration.router_weights[index] = top_k_weights
        selected = self._selection.read(top_k_index)
        groups = self._is_lean and parts.grouped_from is not None and len(selected) >= parts.grouped_from and not self._is_packed
        lease = self._open_source(iteration, selected, top_k_index, top_k_weights, groups)
        stacked = lease.stacked() if groups else None
        source = Unpacked(lease, index, parts.unpacker) if self._is_packed and parts.unpacker is not None else lease
        if stacked is not None:
            output = grouped_forward(module, *stacked, hidden_states, selected, top_k_weights)
        elif self._is_lean:
            output = parts.probe.compute(module, source, hidden_states, selected, top_k_index, top_k_weights)
        else:
            output = seam.eager_forward(module, self._names, source, hidden_states, top_k_index, top_k_weights)
        lease.end()
        if iteration.gate is not None and not parts.policy.lookahead:
            self._iterations.publish_gate()
        if parts.policy.loads_whole_layers:
            parts.memories.complete_layer(index)
        self._iterations.leave_layer(index)
        if parts.timeline.is_recording:
            parts.timeline.add("compute", f"layer {index}", begin_s)
        return output

    def _open_source(
        self,
        iteration: Iteration,
        selected: np.ndarray,
        top_k_index: torch.Tensor,
        top_k_weights: torch.Tensor,
        needs_slots: bool,
    ) -> "Lease | Leases | Resident":
        """The source of this layer's weights while it runs: a lease on the expert memory, or simply the slots."""
        parts, index = self._parts, self._layer.index
        router_output, self._router_output = self._router_output, None  # so that no reference keeps it alive
        chosen, aside = self._chosen(iteration, selected)
        parts.counters.padding_accesses += len(aside)
        is_idle = parts.memories.is_all_resident and not parts.probe.always_accounts
        if is_idle and not iteration.is_published and not needs_slots:
            parts.counters.hits[index] += parts.memories.use(index, chosen)
            if iteration.forward.drafts is not None:
                iteration.forward.drafts.note_all_resident(index, selected, chosen)
            return Resident(parts.memories.resident_weights(index))
        lease = parts.memories.demand(index, chosen, aside)
        num_recalled = lease.num_recalled
        if num_recalled >= 0:
            parts.counters.recalled += num_recalled
            parts.counters.ranked += len(lease.experts)
        parts.counters.hits[index] += lease.num_hits
        parts.counters.late[index] += lease.num_late
        parts.counters.misses[index] += lease.num_misses
        if iteration.forward.drafts is not None:
            iteration.forward.drafts.note(index, selected, lease.experts, lease.found)
        if iteration.is_published:
            scores = scores_of(router_output, top_k_index)
            sizes = index, self._layer.num_experts, parts.setup.num_experts
            gate = GateOutput(*sizes, scores, selected, top_k_weights, parts.buffers)
            if parts.matcher.is_asynchronous and not parts.policy.lookahead:
                parts.matcher.publish_gate(iteration.number, gate, iteration.rows)
            else:  # publish it when the layer is done
                gate.keep()
                iteration.gate = gate
        return lease

    def _chosen(self, iteration: Iteration, selected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Split the selected experts, [T, K]: [n] ids that counting rows selected, in any order, and [m] ids that only padding
        selected."""
        everyones, foreign = selected.reshape(-1), self._layer.num_experts
        if foreign < self._parts.setup.num_experts:  # expert parallelism marks foreign experts with the layer's J
            everyones = everyones[everyones < foreign]
        if iteration.rows is None or len(selected) != iteration.num_rows:
            return everyones, _NONE
        chosen = np.unique(selected[iteration.rows])
        chosen = chosen[chosen < foreign]
        return chosen, np.setdiff1d(everyones[everyones < foreign], chosen)


class Resident:
    """Weights of a layer whose experts all stay in their slots for good."""

    def __init__(self, by_expert: list[dict[str, torch.Tensor]]) -> None:
        self.weights = by_expert.__getitem__

    def as_they_come(self, experts: Sequence[int]) -> Sequence[int]:
        return experts

    def stacked(self) -> None:
        return None

    def end(self) -> None:
        return None
