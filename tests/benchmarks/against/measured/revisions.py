"""What differs between revisions of `finemoe`: one function for each thing, which knows both ways."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import numpy as np


def model_of(engine: Any) -> Any:
    """The model that it is attached to."""
    return engine.model if hasattr(engine, "model") else engine._model


def layers_of(engine: Any) -> list[Any]:
    """An engine's MoE layers."""
    return list(engine.layers if hasattr(engine, "layers") else engine._layers)


def setup_of(engine: Any) -> Any:
    """The sizes of its model."""
    return engine.setup if hasattr(engine, "setup") else engine._setup


def no_arithmetic(engine: Any) -> AbstractContextManager[Any]:
    """The engine hands a layer's input through instead of computing its experts."""

    def hand_through(module: Any, weights: Any, hidden_states: Any, *_: Any) -> Any:
        return hidden_states

    if hasattr(engine, "probe"):
        return engine.probe.computing_with(hand_through)
    return patch("finemoe.runtime.engine.lean_forward", hand_through)


def memory_of(engine: Any) -> Any:
    """The expert memory of its first device."""
    return (engine.memories if hasattr(engine, "memories") else engine._memories).memories[0]


def post(memory: Any, iteration: int, layers: Iterable[int], experts: range, num_experts: int) -> None:
    """Have experts of some layers prefetched, all equally likely."""
    from finemoe.policies import base

    if hasattr(memory, "board") and hasattr(memory.board, "has_run"):
        memory.board.has_run[:] = True  # nothing is loaded for layers that stand idle
    if hasattr(base, "Prediction"):
        probabilities = np.full(num_experts, 1 / num_experts, dtype=np.float32)
        memory.post(iteration, [base.Prediction(layer, probabilities, np.array(experts)) for layer in layers])
    else:
        probabilities = np.full(len(experts), 1 / num_experts)
        memory.post(iteration, [base.Prefetch(layer, np.array(experts), probabilities) for layer in layers])


def are_resident(memory: Any, layers: Iterable[int], experts: range) -> bool:
    """Whether they have all arrived."""
    try:
        from finemoe.cache.state import RESIDENT
    except ImportError:
        from finemoe.cache.expert_cache import RESIDENT

    state = memory.cache.state
    return all((state[layer, experts.start : experts.stop] == RESIDENT).all() for layer in layers)
