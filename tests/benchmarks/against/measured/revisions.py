"""What differs between revisions of `finemoe`: one function for each thing, which knows both ways."""

from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch


def model_of(engine: Any) -> Any:
    """The model that it is attached to."""
    return engine.model if hasattr(engine, "model") else engine._model


def layers_of(engine: Any) -> list[Any]:
    """An engine's MoE layers."""
    return list(engine.layers if hasattr(engine, "layers") else engine._layers)


def top_k_of(engine: Any) -> int:
    """How many experts a token activates."""
    return int((engine.setup if hasattr(engine, "setup") else engine._setup).top_k)


def no_arithmetic(engine: Any) -> AbstractContextManager[Any]:
    """The engine hands a layer's input through instead of computing its experts."""

    def hand_through(module: Any, weights: Any, hidden_states: Any, *_: Any) -> Any:
        return hidden_states

    if hasattr(engine, "probe"):
        return engine.probe.computing_with(hand_through)
    return patch("finemoe.runtime.engine.lean_forward", hand_through)
