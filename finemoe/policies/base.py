"""The contract between a policy and an executor (DESIGN 2).

An executor calls `start_iteration`, then `on_gate` for every layer, then `end_iteration`; a policy answers with prefetches and
keeps `expected`, the probabilities that eviction may read. A policy never touches a weight, a clock or a thread.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class PolicySetup:
    """What a policy is told about its model and its run.

    Attributes:
        num_layers, num_experts, top_k: L, J, K; embedding_dim: h (0 where no embeddings exist).
        prefetch_distance: d in layers; store_capacity: C in maps.
        history: a RoutingTrace or ExpertMapStore of other requests, or None to learn online.
        model: identity of the model. seed: for policies that draw.
    """

    num_layers: int
    num_experts: int
    top_k: int
    embedding_dim: int = 0
    prefetch_distance: int = 3
    store_capacity: int = 1000
    history: Any = None
    model: str = ""
    seed: int = 0


@dataclass(frozen=True)
class Context:
    """What is known when an iteration starts.

    Attributes:
        embeddings: [B, h] float32 semantic embeddings, or None; a row is a sequence in decode, a token in prefill.
        is_prefill: whether this is a prefill.
    """

    embeddings: np.ndarray | None
    is_prefill: bool


@dataclass(frozen=True)
class Prefetch:
    """Experts of one layer that a policy wants loaded: ids [n] ascending and their probabilities [n] (maximum over rows).

    It also tells the executor that `expected[layer]` is now a prediction, whose recall is measured when the gate fires.
    """

    layer: int
    experts: np.ndarray
    probabilities: np.ndarray


class Policy(ABC):
    """One system of the paper.

    Attributes:
        needs_context: whether the executor must hand over embeddings and gate outputs at all.
        default_eviction: name of the system's own eviction rule.
        expected: [L, J] float32, the last predicted distribution of each layer (maximum over rows), 1/J before there is any.
    """

    needs_context = True
    default_eviction = "lru"

    def __init__(self, setup: PolicySetup) -> None:
        self.setup = setup
        self.expected = np.full((setup.num_layers, setup.num_experts), 1.0 / setup.num_experts, dtype=np.float32)

    @abstractmethod
    def start_iteration(self, context: Context) -> list[Prefetch]:
        """Before layer 1, when no gate has spoken yet."""

    @abstractmethod
    def on_gate(self, layer: int, probs: np.ndarray, experts: np.ndarray, lookahead: np.ndarray | None = None) -> list[Prefetch]:
        """The gate of `layer` has spoken: probs [B, J] its softmax, experts [B, K] what the model selected."""

    @abstractmethod
    def end_iteration(self) -> None:
        """The last layer has run."""
