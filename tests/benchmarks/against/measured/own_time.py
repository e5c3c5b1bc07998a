"""The engine's own time a layer at one token, without the experts' arithmetic, when every demanded expert is there."""

import time
from typing import Any

import numpy as np
import torch

import finemoe
from finemoe.runtime.loading import load_model

from .revisions import layers_of, model_of, no_arithmetic, top_k_of


class Measured:
    """Variants "POLICY SHARE", such as "finemoe 0.5"; each has a model and an engine of its own.

    Args:
        model: a miniature; variants: those to be measured; num_passes: over all layers in one measurement, whose median counts.
    """

    expected = None

    def __init__(self, model: str, variants: list[str], num_passes: int) -> None:
        self._num_passes = num_passes
        self._engines = {variant: _preloaded(model, *variant.split()) for variant in variants}
        for variant in variants:
            self.measure(variant)

    def measure(self, variant: str) -> dict[str, Any]:
        """Seconds a layer."""
        engine = self._engines[variant]
        with no_arithmetic(engine):
            return {"values": {variant: float(np.median([_layer_s(engine) for _ in range(self._num_passes)]))}, "tokens": None}

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()


def _preloaded(source: str, policy: str, share: str) -> Any:
    model, _ = load_model(source)
    engine = finemoe.offload(model, float(share), policy)
    engine.preload()
    return engine


def _layer_s(engine: Any) -> float:
    """Time per layer of one iteration over all layers, experts 0 to K-1 demanded in each."""
    layers, top_k = layers_of(engine), top_k_of(engine)
    hidden = torch.zeros(1, model_of(engine).config.hidden_size)
    selected, weights = torch.arange(top_k)[None], torch.full((1, top_k), 1.0 / top_k)
    with torch.inference_mode():
        begin_s = time.perf_counter()
        for layer in layers:
            layer.experts(hidden, selected, weights)
        return (time.perf_counter() - begin_s) / len(layers)
