"""`finemoe.offload`: run a Transformers MoE model with only part of its experts on the device, losslessly (DESIGN 3 and 5)."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import nn

from finemoe.cache.eviction import make_rule
from finemoe.cache.expert_cache import ExpertCache
from finemoe.errors import EngineError, FinemoeError
from finemoe.policies import make_policy
from finemoe.policies.base import PolicySetup, Prefetch
from finemoe.report import Counters, Report
from finemoe.runtime import seam
from finemoe.runtime.layers import MoELayer, activated_per_token, find_moe_layers
from finemoe.runtime.link import make_link
from finemoe.runtime.matcher import Matcher
from finemoe.runtime.memory import ExpertMemory
from finemoe.runtime.observer import Observer
from finemoe.runtime.takeover import Takeover
from finemoe.runtime.tiers import HostTier, RecordLayout, SlotPool
from finemoe.units import parse_bytes


@dataclass(frozen=True)
class EngineOptions:
    """How an engine runs, apart from what its policy is told."""

    policy: str
    eviction: str | None
    device: torch.device
    link: str | None
    asynchronous: bool


class Engine:
    """An attached model's expert memory, policy and counters. Made by `offload`; a context manager that closes itself."""

    def __init__(
        self, model: nn.Module, layers: list[MoELayer], memory_bytes: int, setup: PolicySetup, options: EngineOptions
    ) -> None:
        self._model, self._layers, self._setup, self._options = model, layers, setup, options
        self.policy = make_policy(options.policy, setup)
        self.eviction = options.eviction or self.policy.default_eviction
        rule = make_rule(self.eviction, setup.num_layers, setup.num_experts, self.policy.expected)
        link = make_link(options.device, options.link)
        host = HostTier(layers, pinned=options.device.type == "cuda")
        num_slots = min(memory_bytes // host.record_bytes, host.num_records)
        cache = ExpertCache(rule, num_slots)
        self.expert_memory_bytes = num_slots * host.record_bytes
        self._counters = Counters(setup.num_layers)
        pool = SlotPool(host.layouts, num_slots, options.device)
        self._memory = ExpertMemory(cache, host, pool, link, self._counters, options.asynchronous)
        self._matcher = Matcher(self.policy, self._post, options.asynchronous and self.policy.needs_context)
        self._takeover = Takeover(model, layers, host, options.device)
        self._names = [tuple(layer.expert_parameters()) for layer in layers]
        self._disconnect = [seam.connect(layer.experts, self._layer_function(layer.index)) for layer in layers]
        self._observer = Observer(model, layers, self, gates=self.policy.needs_context)
        self._iteration, self._layer, self._is_open = 0, -1, False
        self._rows: torch.Tensor | None = None
        self._gate_output: torch.Tensor | None = None
        self._predicted_in = np.full(setup.num_layers, -1, dtype=np.int64)
        self._is_closed = False

    def report(self) -> Report:
        """The counters so far, after the matcher has handled what was published."""
        self._matcher.flush()
        return Report.of(self._counters, self._options.policy, self.eviction, self.expert_memory_bytes)

    def reset_counters(self) -> None:
        """Start counting anew; cache and policy keep their state."""
        self._matcher.flush()
        self._counters.reset()

    def close(self) -> None:
        """Stop the threads and give the model back exactly as it was; closing twice is harmless."""
        if self._is_closed:
            return
        self._is_closed = True
        self._observer.detach()
        self._matcher.close()
        self._memory.close()
        for disconnect in self._disconnect:
            disconnect()
        self._takeover.undo()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def on_start(self, embeddings: torch.Tensor | None, is_prefill: bool, rows: torch.Tensor | None) -> None:
        """The embedding layer has run: a new iteration (called by the observer)."""
        self._raise_failures()
        self._iteration += 1
        self._layer, self._is_open, self._rows, self._is_prefill = -1, True, rows, is_prefill
        self._begin_s = time.perf_counter()
        self._memory.start_iteration(self._iteration)
        if self.policy.needs_context and not self._matcher.publish_start(self._iteration, embeddings, is_prefill, rows):
            self._counters.skipped_iterations += 1

    def on_gate(self, layer: int, gate_output: torch.Tensor) -> None:
        """A router has run (called by the observer)."""
        self._gate_output = gate_output

    def on_forward_end(self) -> None:
        """The model's forward has returned (called by the observer)."""
        self._raise_failures()
        if self._is_open:
            self._is_open = False
            durations_s = self._counters.ttft_s if self._is_prefill else self._counters.tpot_s
            durations_s.append(time.perf_counter() - self._begin_s)

    def _layer_function(self, layer: int) -> seam.LayerFunction:
        def run(
            module: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
        ) -> torch.Tensor:
            return self._run_layer(layer, module, hidden_states, top_k_index, top_k_weights)

        return run

    def _run_layer(
        self,
        layer: int,
        module: nn.Module,
        hidden_states: torch.Tensor,
        top_k_index: torch.Tensor,
        top_k_weights: torch.Tensor,
    ) -> torch.Tensor:
        self._require_inference(hidden_states)
        self._enter_layer(layer, hidden_states)
        demanded = np.unique(top_k_index.detach().cpu().numpy())
        demanded = demanded[demanded < self._setup.num_experts]  # expert parallelism marks foreign experts with J
        self._count_recall(layer, demanded)
        lease = self._memory.demand(layer, demanded)
        self._count_access(layer, lease.access.hits, lease.access.late, lease.access.misses)
        if self.policy.needs_context:
            assert self._gate_output is not None
            self._matcher.publish_gate(self._iteration, layer, self._gate_output, top_k_index, self._rows)
        output = seam.eager_forward(module, self._names[layer], lease, hidden_states, top_k_index, top_k_weights)
        lease.end()
        if layer == self._setup.num_layers - 1 and self.policy.needs_context:
            self._matcher.publish_end()
        return output

    def _enter_layer(self, layer: int, hidden_states: torch.Tensor) -> None:
        self._raise_failures()
        if layer <= self._layer or not self._iteration:  # a forward that did not pass the embedding layer
            self.on_start(None, hidden_states.shape[0] > 1, None)
        self._layer = layer

    def _raise_failures(self) -> None:
        self._matcher.check()
        self._memory.check()

    def _require_inference(self, hidden_states: torch.Tensor) -> None:
        if torch.is_grad_enabled() and hidden_states.requires_grad:
            raise EngineError(
                "an offloaded model runs inference only; call it under torch.no_grad(), or close the engine to train"
            )

    def _post(self, iteration: int, prefetches: Sequence[Prefetch]) -> None:
        for prefetch in prefetches:
            if prefetch.layer > self._layer:
                self._predicted_in[prefetch.layer] = iteration
        self._memory.post(iteration, prefetches)

    def _count_access(self, layer: int, hits: np.ndarray, late: np.ndarray, misses: np.ndarray) -> None:
        self._counters.hits[layer] += len(hits)
        self._counters.late[layer] += len(late)
        self._counters.misses[layer] += len(misses)

    def _count_recall(self, layer: int, demanded: np.ndarray) -> None:
        if self._predicted_in[layer] == self._iteration:
            ranked = np.argsort(-self.policy.expected[layer], kind="stable")[: len(demanded)]
            self._counters.recalled[layer] += np.isin(demanded, ranked).sum()
            self._counters.ranked[layer] += len(demanded)


def offload(
    model: nn.Module,
    expert_memory: int | float | str,
    policy: str = "finemoe",
    *,
    history: Any = None,
    eviction: str | None = None,
    prefetch_distance: int = 3,
    store_capacity: int = 1000,
    device: str | torch.device | None = None,
    link: str | None = None,
    asynchronous: bool = True,
    seed: int = 0,
) -> Engine:
    """Keep only part of a model's routed experts on the device; the model's own `generate` and `forward` go on working.

    Args:
        model: a Transformers MoE model with its weights in memory.
        expert_memory: bytes (int), a text with a unit ("6GiB"), or a share in (0, 1] of all routed experts (float).
        policy: "finemoe" or "on-demand".
        history: a RoutingTrace or ExpertMapStore of other requests; None learns online from the requests served.
        eviction: overrides the policy's own rule: "lru", "lfu", "finemoe".
        prefetch_distance: d in layers; store_capacity: C in maps.
        device: where the model computes; default the first CUDA device if there is one, else the CPU.
        link: "paced:24GB/s" makes copies take a real link's time on a CPU-only machine.
        asynchronous: search and prefetch off the critical path; False does both in line, deterministically.
        seed: for policies that draw at random.
    Raises:
        FinemoeError: the model has no offloadable experts, is already offloaded, or an option is out of range.
    """
    layers = find_moe_layers(model)
    if any(seam.is_connected(layer.experts) for layer in layers):
        raise FinemoeError("this model is already offloaded; close its engine first")
    counts = {layer.num_experts for layer in layers}
    if len(counts) > 1:
        raise FinemoeError(f"the model's MoE layers have different numbers of experts {sorted(counts)}, which is not supported yet")
    setup = PolicySetup(
        num_layers=len(layers),
        num_experts=counts.pop(),
        top_k=activated_per_token(model),
        embedding_dim=model.get_input_embeddings().weight.shape[1],  # type: ignore[operator]
        prefetch_distance=prefetch_distance,
        store_capacity=store_capacity,
        history=history,
        model=identity_of(model),
        seed=seed,
    )
    options = EngineOptions(policy, eviction, _device_of(device), link, asynchronous)
    return Engine(model, layers, memory_bytes(expert_memory, layers), setup, options)


def memory_bytes(expert_memory: int | float | str, layers: list[MoELayer]) -> int:
    """Bytes that `expert_memory` means for these layers.

    Raises:
        FinemoeError: it is neither bytes nor a share in (0, 1], or it holds less than one expert.
    """
    sizes = [RecordLayout.of(layer).nbytes for layer in layers]
    largest, num_experts = max(sizes), sum(layer.num_experts for layer in layers)
    if isinstance(expert_memory, bool) or not isinstance(expert_memory, int | float | str):
        raise FinemoeError(f"expert_memory must be bytes, a text like '6GiB', or a share, not {expert_memory!r}")
    if isinstance(expert_memory, float):
        if not 0 < expert_memory <= 1:
            raise FinemoeError(f"expert_memory as a share must lie in (0, 1], not {expert_memory}")
        return max(1, round(expert_memory * num_experts)) * largest
    num_bytes = parse_bytes(expert_memory) if isinstance(expert_memory, str) else expert_memory
    if num_bytes < largest:
        hint = "; write 1.0 for all experts" if num_bytes == 1 else ""
        raise FinemoeError(f"expert_memory is {num_bytes} bytes, but one expert takes {largest}{hint}")
    return num_bytes


def identity_of(model: nn.Module) -> str:
    """A short name for a model's routing: its class and a digest of its first router's weights."""
    layer = find_moe_layers(model)[0]
    weight = next(layer.router.parameters()).detach().float().cpu().contiguous().numpy()
    return f"{type(model).__name__}-{hashlib.blake2b(weight.tobytes(), digest_size=6).hexdigest()}"


def _device_of(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    return torch.device(device)
