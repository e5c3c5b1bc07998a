"""The engine: what happens around and inside a model's forward while its experts are offloaded (DESIGN 5)."""

import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import nn

from finemoe.cache.capacity import slots_per_device
from finemoe.cache.expert_cache import ExpertCache
from finemoe.cache.placement import owners_of
from finemoe.cache.rules import rule_named
from finemoe.errors import EngineError
from finemoe.interrupts import interrupts_wait
from finemoe.maps.expert_map import lookahead_width
from finemoe.maps.kernels import warm_up
from finemoe.policies import make_policy
from finemoe.policies.base import Policy, PolicySetup, Prediction
from finemoe.report import Counters, Report
from finemoe.runtime import seam
from finemoe.runtime.devices import DeviceMemories, Leases
from finemoe.runtime.gates import GateOutput
from finemoe.runtime.grouped import grouped_forward
from finemoe.runtime.guards import Guards
from finemoe.runtime.layers import MoELayer, scores_of
from finemoe.runtime.lean import is_common, lean_forward
from finemoe.runtime.link import make_link
from finemoe.runtime.lookahead import AheadOutput, RoutersAhead
from finemoe.runtime.matcher import Matcher
from finemoe.runtime.memory import ExpertMemory
from finemoe.runtime.observer import Observer
from finemoe.runtime.options import EngineOptions
from finemoe.runtime.phases import Forward, Phase
from finemoe.runtime.pool import SlotPool
from finemoe.runtime.reaper import Watch
from finemoe.runtime.records import RecordLayout
from finemoe.runtime.snapshot import host_buffers
from finemoe.runtime.takeover import ModulesAsTheyWere, Takeover, is_empty
from finemoe.runtime.tiers import RecordStore
from finemoe.runtime.timeline import Timeline

_ONE_THREAD = (
    "another thread is inside this model's forward; an engine serves one thread at a time: "
    "take turns, or give each thread a model and an engine of its own"
)


_NO_EXPERTS = np.empty(0, dtype=np.int64)
_FAREWELL_S = 2.0  # that the end of the process waits for a thread that generates to hear of it


class Engine:
    """An attached model's expert memory, policy and counters. Made by `offload` or `load`; a context manager that closes itself.

    Args:
        model: a Transformers MoE model; layers: its MoE layers; setup: what the policy is told; options: how the engine runs.
        records: a store that holds the experts already; None takes them out of the model.
        keeps_records: whether a given store is the engine's to close; otherwise it is lent, and stays for the next engine.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: list[MoELayer],
        setup: PolicySetup,
        options: EngineOptions,
        records: RecordStore | None = None,
        keeps_records: bool = True,
    ) -> None:
        self._model, self._layers, self._setup, self._options = model, layers, setup, options
        self._counts = [layer.num_experts for layer in layers]
        self._counters = Counters(setup.num_layers)
        self._timeline = Timeline()
        self._mutex = threading.RLock()
        self._thread: int | None = None  # who is inside the model's forward, or inside one of its MoE layers
        self._is_in_forward = False
        self._process = os.getpid()
        self._stream: torch.cuda.Stream | None = None  # on which the last layer was computed
        self._iteration, self._layer = 0, -1
        self._is_open = self._is_publishing = self._is_moving = False
        self._forward = Forward(Phase.UNKNOWN, 0, False)
        self._prefills_s: dict[int, float] = {}  # how long its prefill took, of requests that ran nothing since
        self._begin_s = 0.0
        self._rows: np.ndarray | None = None
        self._num_rows = 0  # of the iteration, padding included
        self._router_output: Any = None
        self._gate: tuple[int, GateOutput, np.ndarray] | None = None  # not yet published
        self._router_weights: dict[int, torch.Tensor] = {}
        self._predictions: list[tuple[int, np.ndarray]] = [(-1, np.empty(0))] * setup.num_layers
        self._has_run = [False] * setup.num_layers
        self._is_closed = False
        self._undo = ExitStack()
        self._watch = Watch(self)
        if records is not None and keeps_records:
            self._undo.callback(self._refuse_runs, layers)
        before = ModulesAsTheyWere(model)
        self._undo.callback(before.restore)  # whatever an interrupt left of what the steps after this one do
        try:
            with torch.inference_mode(False):  # whose tensors neither the workers' threads nor a later training could use
                self._attach(records, keeps_records)
                before.forget()
        except BaseException:
            with torch.inference_mode(False), interrupts_wait():
                self._is_closed = True
                self._watch.cancel()
                self._undo.close()
            raise

    def _attach(self, records: RecordStore | None, keeps_records: bool) -> None:
        """Everything that `close` undoes, in the opposite order.

        An interrupt may come between any two steps: what undoes threads or weights is noted before they begin.
        """
        setup, options = self._setup, self._options
        layouts = records.layouts if records else [RecordLayout.in_place(layer, options.devices[0]) for layer in self._layers]
        record_bytes = max(layout.nbytes for layout in layouts)
        devices, home = options.devices, options.devices[0]
        self.policy = make_policy(options.policy, setup, **options.policy_options)
        if self.policy.needs_context:
            warm_up()  # what it searches and selects with, so that no first token waits for a compiler
        wanted = _wanted_memory(self.policy, options)
        slots = slots_per_device(wanted, record_bytes, sum(self._counts), len(devices))
        self.expert_memory_bytes = slots * record_bytes * len(devices)
        is_asynchronous = not self.policy.is_synchronous if options.asynchronous is None else options.asynchronous
        self.eviction = options.eviction or self.policy.default_eviction
        rule = rule_named(self.eviction)
        links = [make_link(device, options.link) for device in devices]
        pools = [SlotPool(layouts, slots, device) for device in devices]
        holds_weights = records is None
        if records is None:
            records = RecordStore(layouts, self._counts, options.host_bytes, home.type == "cuda", options.disk_folder)
        self.records = records
        self._own_records = records if keeps_records else None
        if keeps_records:
            self._undo.callback(records.close)
        takeover = Takeover(self._model, self._layers, records, home, holds_weights)
        self._undo.callback(takeover.undo)
        takeover.begin()
        names = ["link"] if len(devices) == 1 else [f"link {index}" for index in range(len(devices))]
        memories = []
        for pool, link, name in zip(pools, links, names, strict=True):
            cache = ExpertCache(rule, setup.num_layers, setup.num_experts, slots)
            memory = ExpertMemory(cache, records, pool, link, self._counters, self._timeline, is_asynchronous, name)
            self._undo.callback(memory.close)
            memories.append(memory)
        self._memories = DeviceMemories(memories, owners_of(self._counts, len(devices)), self._counts, home)
        num_snapshots = 1 + setup.num_layers * (1 + 2 * len(self.policy.lookahead))  # of one iteration
        self._buffers = host_buffers(home, num_snapshots if self.policy.needs_context else 0)
        if self._buffers is not None:
            self._undo.callback(self._buffers.close)
        is_beside = is_asynchronous and self.policy.needs_context
        self._matcher = Matcher(self.policy, _Weakly(self), self._timeline, is_beside, self._buffers)
        self._undo.callback(self._memories.close)  # first of all the slots, so that the device has room for what comes back
        self._undo.callback(self._matcher.close)
        self._memories.start()
        self._matcher.start()
        if self.policy.lookahead:
            self._ahead = RoutersAhead(self._model, self._layers, self.policy.lookahead, self.on_residual)
            self._undo.callback(self._ahead.detach)
        for layer in self._layers:
            self._undo.callback(seam.connect(layer.experts, self._layer_function(layer)))
        self._undo.callback(Guards(self._model, self._layers, holds_weights).lift)
        self._observer = Observer(self._model, self._layers, self, gates=self.policy.needs_context)
        self._undo.callback(self._observer.detach)
        if self.policy.holds_everything:
            self._memories.preload(is_counted=False)
        parts = self._process, self._matcher, self._memories
        # For an engine that is dropped, and for the end of the process; after either nobody needs the model.
        self._watch.begin(partial(_end, *parts, self._own_records), partial(_abandon, *parts, weakref.ref(self)))

    def report(self) -> Report:
        """The counters so far, after the matcher has handled what was published.

        Raises:
            EngineError: a worker has failed.
        """
        self._matcher.flush()
        self._raise_failures()
        unused_bytes = sum(memory.unused_bytes for memory in self._memories.memories)
        return Report.of(self._counters, self._options.policy, self.eviction, self.expert_memory_bytes, unused_bytes)

    def preload(self) -> None:
        """Fill the free slots before the first request, with what the policy expects most; all of the model where it fits.

        Raises:
            EngineError: another thread is inside the model's forward.
        """
        self._require_process()
        with self._mutex:  # until it is done: a forward that another thread begins waits for it
            if self._is_closed:
                raise EngineError("this engine is closed; offload the model anew")
            self._require_turn()
            self._recover()
            with self._moving():
                self._memories.preload()

    def reset_counters(self) -> None:
        """Start counting anew; cache and policy keep their state. An iteration that runs meanwhile counts from here on."""
        self._matcher.flush()
        self._counters.reset()
        self._prefills_s.clear()
        if self._is_open and _is_inside(self._thread, self._observer.modules):
            self._counters.enter_request(self._forward.request)

    @contextmanager
    def timeline(self, path: str | Path) -> Iterator[None]:
        """Record what compute, links and matcher do inside the `with` block, and write it for Perfetto or chrome://tracing."""
        self._timeline.start()
        try:
            yield
            self._matcher.flush()
        finally:
            self._timeline.stop()
        self._timeline.save(path)

    def close(self) -> None:
        """Stop the threads and give the model back exactly as it was; closing twice is harmless.

        Raises:
            EngineError: another thread is inside the model's forward.
        """
        self._require_process()
        with self._mutex:
            if self._is_closed:
                return
            self._require_turn()
            try:
                with torch.inference_mode(False), interrupts_wait():
                    self._is_closed = True
                    self._watch.cancel()
                    self._undo.close()
            except BaseException:
                if self._is_closed:
                    self._refuse_runs([layer for layer in self._layers if is_empty(layer)])
                raise

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close()
        except EngineError as refusal:
            if error is None:
                raise
            error.add_note(f"Closing the engine: {refusal}")  # what went wrong first is what the caller must hear

    def on_forward_start(self) -> None:
        """The model's forward begins (called by the observer).

        Raises:
            EngineError: another thread is inside it, or a worker failed.
        """
        self._require_process()  # before the mutex, which another thread may have held when this process was forked
        with self._mutex:
            if self._is_closed:
                return  # while this forward waited: it goes on with the model as it was
            self._require_turn()
            self._thread, self._is_in_forward = threading.get_ident(), True
            self._recover()
        self._raise_failures()
        self._is_open, self._layer = False, -1

    def on_start(self, embeddings: torch.Tensor, is_prefill: bool, rows: torch.Tensor | None) -> None:
        """The embedding layer has run: a new iteration (called by the observer), unless another thread is inside the model."""
        self._require_process()
        with self._mutex:
            is_used_twice = self._is_open and self._layer < 0  # before the first MoE layer
            if not (is_used_twice or self._is_closed or self._is_anothers()):
                self._start_iteration(embeddings, self._observer.forward, len(embeddings))

    def _start_iteration(self, embeddings: torch.Tensor | None, forward: Forward, num_rows: int) -> None:
        self._recover()
        self._end_publishing()
        self._raise_failures()
        self._iteration += 1
        self._layer, self._is_open, self._forward = -1, True, forward
        self._router_output = self._gate = None
        self._rows, self._num_rows = None if forward.rows is None else forward.rows.cpu().numpy(), num_rows
        self._router_weights.clear()
        self._begin_s = time.perf_counter()
        self._counters.enter_request(forward.request)
        # With everything resident there is nothing to prefetch, so nothing is searched; nor for a batch that is all padding.
        has_rows = num_rows > 0 if self._rows is None else len(self._rows) > 0
        self._is_publishing = self.policy.needs_context and has_rows and not self._memories.is_all_resident
        self._memories.start_iteration(self._iteration)
        if self._is_publishing:
            with self._moving():
                told = forward.phase.is_prefill, forward.starts_request
                is_seen = self._matcher.publish_start(self._iteration, embeddings, *told, self._rows)
            self._counters.skipped_iterations += not is_seen

    def on_router(self, layer: int, output: Any) -> None:
        """A router has run (called by the observer)."""
        if not self._is_anothers():
            self._router_output = output

    def on_residual(self, layer: int, residual: torch.Tensor) -> None:
        """A decoder layer has run (called where the policy looks ahead): now its gate and the routers ahead are published."""
        if self._gate is None or self._gate[0] != layer or self._is_anothers():
            return
        setup = self._setup
        kept = lookahead_width(setup.num_experts, setup.top_k)
        choices = self._ahead.choices(layer, residual)
        with self._moving():
            self._publish_gate(AheadOutput(choices, self._ahead.targets(layer), setup.num_experts, kept, self._buffers))

    def on_forward_end(self, is_complete: bool) -> bool:
        """The model's forward has returned, or broken off with an exception (called by the observer).

        Returns:
            Whether it was the one that is followed: a thread that was refused comes here, too.
        """
        if self._thread != threading.get_ident():
            return False
        try:
            if is_complete:
                self._end_iteration()
        finally:
            self._is_in_forward = False
            self._thread = None  # last of all: then another thread may come in
        return True

    def _end_iteration(self) -> None:
        self._end_publishing()
        self._raise_failures()
        if self._is_open:
            self._is_open = False
            self._require_numbers()
            self._count_iteration(time.perf_counter() - self._begin_s)
            self._timeline.add("compute", f"iteration {self._iteration}", self._begin_s)

    def _count_iteration(self, duration_s: float) -> None:
        """What an iteration was, and its duration where that is a time to the first token or a time per token."""
        counters, phase, request = self._counters, self._forward.phase, self._forward.request
        prefill_s = self._prefills_s.pop(request, None)
        if prefill_s is not None and phase in (Phase.PIECE, Phase.SEVERAL):  # several may be the rest of its prompt, or drafts
            counters.correct_prefill(prefill_s, duration_s if phase is Phase.PIECE else None)
        if phase is Phase.PREFILL:
            counters.count_prefill(duration_s)
            self._prefills_s[request] = duration_s
        elif phase is Phase.PIECE and prefill_s is not None:
            self._prefills_s[request] = prefill_s + duration_s
        elif phase is Phase.DECODE:
            counters.count_decode_step(duration_s)
        else:  # also a piece whose beginning was not seen, or before a reset
            counters.num_decode_steps += phase is Phase.SEVERAL
            counters.num_unknown_steps += 1

    def _refuse_runs(self, layers: list[MoELayer]) -> None:
        """Layers without experts once the engine is closed: never held (load), or lost with what should have restored them."""
        for layer in layers:
            seam.disable(layer.experts)
        if layers:
            Guards(self._model, layers, holds_weights=False)

    def _layer_function(self, layer: MoELayer) -> seam.LayerFunction:
        names, is_lean = tuple(layer.expert_parameters()), is_common(type(layer.experts))  # type: ignore[arg-type]

        def run(
            module: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
        ) -> torch.Tensor:
            self._enter_layer(layer.index, hidden_states)
            self._router_weights[layer.index] = top_k_weights
            selected = top_k_index.cpu().numpy()
            groups = is_lean and self._options.grouped_from is not None and len(selected) >= self._options.grouped_from
            source = self._open_source(layer, selected, top_k_index, top_k_weights, groups)
            stacked = source.stacked() if groups else None
            if stacked is not None:
                output = grouped_forward(module, *stacked, hidden_states, selected, top_k_weights)
            elif is_lean:
                output = lean_forward(module, source.weights, hidden_states, selected, top_k_index, top_k_weights)
            else:
                output = seam.eager_forward(module, names, source, hidden_states, top_k_index, top_k_weights)
            source.end()
            if not self.policy.lookahead:
                self._publish_gate(None)
            if self.policy.loads_whole_layers:
                self._memories.complete_layer(layer.index)
            self._leave_layer(layer.index)
            return output

        return run

    def _enter_layer(self, layer: int, hidden_states: torch.Tensor) -> None:
        if hidden_states.requires_grad and torch.is_grad_enabled():
            raise EngineError(
                "an offloaded model runs inference only; call it under torch.no_grad(), or close the engine to train"
            )
        self._require_process()
        self._raise_failures()
        with self._mutex:
            if self._is_closed:
                raise EngineError("this engine was closed while the layer waited; call the model again")
            self._require_turn()
            self._thread = threading.get_ident()  # inner modules may be called directly, past the model's own forward
            # A forward that did not pass the embedding layer, or the first after something broke off before the first layer.
            if layer <= self._layer or not self._is_open or self._is_moving:
                self._start_past_the_embedding(hidden_states.shape[0])
            self._layer = layer
            self._is_moving = True
        self._follow_stream(hidden_states.device)
        self._layer_begin_s = time.perf_counter()

    def _start_past_the_embedding(self, num_rows: int) -> None:
        forward, begin_s, is_inside = self._observer.forward, self._begin_s, self._observer.is_inside
        goes_on = is_inside and self._is_open and not self._is_moving  # layers that a forward runs again
        self._layer = -1
        self._is_open = False
        self._start_iteration(None, replace(forward, starts_request=False) if goes_on else forward, num_rows)
        if goes_on:
            self._begin_s = begin_s
        self._counters.num_unknown_steps += not is_inside  # a layer called by itself, of which nobody will see the end

    def _follow_stream(self, device: torch.device) -> None:
        """Slots are ordered by the stream that computes: one that takes over waits for the one before."""
        if device.type == "cuda":
            stream = torch.cuda.current_stream(device)
            if self._stream is not None and stream != self._stream:
                stream.wait_stream(self._stream)
            self._stream = stream

    def _is_anothers(self) -> bool:
        """Whether another thread is inside the model's forward or one of its layers."""
        if self._thread in (None, threading.get_ident()):
            return False
        return _is_inside(self._thread, [*self._observer.modules, *(layer.experts for layer in self._layers)])

    def _require_turn(self) -> None:
        if self._is_anothers():
            raise EngineError(_ONE_THREAD)

    def _require_process(self) -> None:
        if os.getpid() != self._process:
            raise EngineError("a forked process has none of this engine's threads; offload the model there, after the fork")

    def _open_source(
        self,
        layer: MoELayer,
        selected: np.ndarray,
        top_k_index: torch.Tensor,
        top_k_weights: torch.Tensor,
        needs_slots: bool,
    ) -> "Leases | _Resident":
        """Where this layer's weights come from while it runs: a lease on the expert memory, or simply the slots."""
        index = layer.index
        chosen, aside = self._chosen(layer, selected)
        self._counters.padding_accesses += len(aside)
        if self._memories.is_all_resident and not self._is_publishing and not needs_slots:
            self._counters.hits[index] += len(chosen)
            self._memories.use(index, list(chosen))
            return _Resident(self._memories.resident_weights(index))
        demanded = np.array(sorted(chosen), dtype=np.int64)
        self._count_recall(index, demanded)
        leases = self._memories.demand(index, demanded, np.array(sorted(aside), dtype=np.int64))
        for access in leases.accesses:
            self._counters.hits[index] += len(access.hits)
            self._counters.late[index] += len(access.late)
            self._counters.misses[index] += len(access.misses)
        if self._is_publishing:
            scores, self._router_output = scores_of(self._router_output, top_k_index), None
            width = self._setup.num_experts
            gate = GateOutput(index, layer.num_experts, width, scores, selected, top_k_weights, self._buffers)
            self._gate = (index, gate, selected)
            if self._matcher.is_asynchronous and not self.policy.lookahead:
                self._publish_gate(None)
        return leases

    def _chosen(self, layer: MoELayer, selected: np.ndarray) -> tuple[set[int], set[int]]:
        """The experts that rows which count selected, and those that only padding did; selected: [rows, K]."""
        everyones = set(selected.ravel().tolist()) - {layer.num_experts}  # expert parallelism marks foreign experts with J
        if self._rows is None or len(selected) != self._num_rows:
            return everyones, set()
        chosen = everyones.intersection(selected[self._rows].ravel().tolist())
        return chosen, everyones - chosen

    def _publish_gate(self, ahead: AheadOutput | None) -> None:
        """What the last gate said goes to the matcher: at once where it works beside inference, else when the layer is done."""
        if self._gate is not None:
            (layer, gate, selected), self._gate = self._gate, None
            self._matcher.publish_gate(self._iteration, layer, gate, selected, self._rows, ahead)

    def _leave_layer(self, layer: int) -> None:
        self._is_moving = False
        self._has_run[layer] = True
        self._timeline.add("compute", f"layer {layer}", self._layer_begin_s)
        if not self._is_in_forward:
            self._thread = None

    @contextmanager
    def _moving(self) -> Iterator[None]:
        """Loads in the calling thread: if they break off, the next use recovers as after a layer that broke off."""
        self._is_moving = True
        yield
        self._is_moving = False

    def _recover(self) -> None:
        """After something that broke off while experts were moved (an interrupt, an error) start from an empty cache."""
        if self._is_moving:
            self._is_open = self._is_publishing = False
            self._matcher.forget()
            self._memories.reset()
            self._is_moving = False  # not before: an interrupt in here must not leave the cache half emptied
            if self.policy.holds_everything:
                with self._moving():
                    self._memories.preload(is_counted=False)

    def _end_publishing(self) -> None:
        if self._is_publishing:
            self._is_publishing = False
            self._matcher.publish_end()

    def _raise_failures(self) -> None:
        self._matcher.check()
        self._memories.check()

    def _require_numbers(self) -> None:
        """A router's NaN spoils all that follows, so that looking at the last layer finds it; then the first such layer is
        named."""
        if not self._router_weights or not self._has_nan(max(self._router_weights)):
            return
        first = next(layer for layer in sorted(self._router_weights) if self._has_nan(layer))
        raise EngineError(f"the router of MoE layer {first} emitted NaN; the model's weights or its input are not finite")

    def _has_nan(self, layer: int) -> bool:
        weights = self._router_weights[layer]
        if self._rows is not None and len(weights) > self._rows.max(initial=0):
            weights = weights[torch.from_numpy(self._rows).to(weights.device)]
        return bool(weights.isnan().any())

    def _post(self, iteration: int | None, predictions: Sequence[Prediction]) -> None:
        """Eviction hears of every layer; recall is measured, and experts are loaded, of those that may run."""
        told = []
        for prediction in predictions:
            may_run = self._may_run(prediction.layer)
            if may_run and iteration is not None and prediction.layer > self._layer:
                self._predictions[prediction.layer] = (iteration, prediction.probabilities)
            told.append(prediction if may_run else prediction.with_experts(_NO_EXPERTS))
        self._memories.post(iteration, told)

    def _may_run(self, layer: int) -> bool:
        """False for layers that stood idle so far, such as a vision tower's where only text is served."""
        return self._has_run[layer] or self._iteration <= 1

    def _count_recall(self, layer: int, demanded: np.ndarray) -> None:
        iteration, expected = self._predictions[layer]
        if iteration == self._iteration:
            ranked = np.argsort(-expected, kind="stable")[: len(demanded)]
            self._counters.recalled += len(set(ranked.tolist()).intersection(demanded.tolist()))
            self._counters.ranked += len(demanded)


def _wanted_memory(policy: Policy, options: EngineOptions) -> int | float | str:
    return 1.0 if policy.holds_everything else options.expert_memory


def require_possible(
    layers: Sequence[MoELayer], layouts: Sequence[RecordLayout], setup: PolicySetup, options: EngineOptions
) -> None:
    """Refuse what an engine would refuse, before the weights of a checkpoint are read.

    Raises:
        FinemoeError: a name is unknown, or an option out of range.
    """
    policy = make_policy(options.policy, setup, **options.policy_options)
    rule_named(options.eviction or policy.default_eviction)
    record_bytes, wanted = max(layout.nbytes for layout in layouts), _wanted_memory(policy, options)
    slots_per_device(wanted, record_bytes, sum(layer.num_experts for layer in layers), len(options.devices))
    make_link(options.devices[0], options.link)


class _Resident:
    """Weights of a layer whose experts are all in their slots for good."""

    def __init__(self, by_expert: list[dict[str, torch.Tensor]]) -> None:
        self.weights = by_expert.__getitem__

    def stacked(self) -> None:
        return None

    def end(self) -> None:
        return None


class _Weakly:
    """An engine's `_post` for its matcher, whose thread must not keep an engine alive that nobody else does."""

    def __init__(self, engine: Engine) -> None:
        self._engine = weakref.ref(engine)

    def __call__(self, iteration: int | None, predictions: Sequence[Prediction]) -> None:
        engine = self._engine()
        if engine is not None:
            engine._post(iteration, predictions)


def _end(process: int, matcher: Matcher, memories: DeviceMemories, records: RecordStore | None) -> None:
    """Stop an engine's threads and give its memory back, but leave the model as it is."""
    if os.getpid() == process:  # a forked process has no threads to stop, and the memory is its parent's
        matcher.close()
        memories.close()
        if records is not None:
            records.close()


def _abandon(process: int, matcher: Matcher, memories: DeviceMemories, reference: "weakref.ref[Engine]") -> None:
    """The process ends, perhaps while a thread generates: stop the workers, refuse that thread at its next layer, and let it say
    what it heard. Memory stays, which it may be reading and which goes with the process."""
    if os.getpid() != process:
        return
    memories.abandon()
    matcher.close()
    engine = reference()
    if engine is None:
        return
    for thread in threading.enumerate():
        if thread.daemon and thread is not threading.current_thread() and _uses(thread.ident, engine._model):
            thread.join(_FAREWELL_S)


def _uses(thread: int | None, model: nn.Module) -> bool:
    """Whether a thread is in some method of a model now, such as `generate`."""
    frame = sys._current_frames().get(thread) if thread is not None else None
    while frame is not None:
        if frame.f_locals.get("self") is model:
            return True
        frame = frame.f_back
    return False


def _is_inside(thread: int | None, modules: Sequence[nn.Module]) -> bool:
    """Whether a thread is in a forward of one of these now (its note of entering may be stale after an interrupt)."""
    wanted = {id(module) for module in modules}
    frame = sys._current_frames().get(thread) if thread is not None else None
    while frame is not None:
        if frame.f_code.co_name == "_call_impl" and id(frame.f_locals.get("self")) in wanted:
            return True
        frame = frame.f_back
    return False
