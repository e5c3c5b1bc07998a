"""The engine's own time a layer at one token, without the experts' arithmetic, when every demanded expert is there."""

import time
from typing import Any

import numpy as np
import torch

import finemoe
from finemoe.runtime.loading import load_model

from .revisions import layers_of, model_of, no_arithmetic, setup_of


class Measured:
    """Variants "POLICY SHARE", such as "finemoe 0.5"; each has a model and an engine of its own. A policy "with history" has one
    in which every layer selected what is demanded here: it searches `num_maps` maps, and asks for what is there.

    Args:
        model: a miniature; variants: those to be measured; num_passes: over all layers in one measurement, whose median counts.
        num_maps: of a history.
    """

    expected = None

    def __init__(self, model: str, variants: list[str], num_passes: int, num_maps: int) -> None:
        self._num_passes = num_passes
        self._engines = {variant: _preloaded(model, *variant.rsplit(maxsplit=1), num_maps) for variant in variants}
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


def _preloaded(source: str, policy: str, share: str, num_maps: int) -> Any:
    name, with_history, _ = policy.partition(" with history")
    model, _ = load_model(source)
    history = _constant_history(model, num_maps) if with_history else None
    engine = finemoe.offload(model, float(share), name, history=history)
    engine.preload()
    return engine


def _constant_history(model: Any, num_maps: int) -> finemoe.RoutingTrace:
    """Experts 0 to K-1 in every layer of every token."""
    with finemoe.offload(model, 1.0, "on-demand") as engine:
        setup = setup_of(engine)
    ids = np.tile(np.arange(setup.top_k), (num_maps, setup.num_layers, 1))
    return finemoe.RoutingTrace.from_topk(ids, np.full(ids.shape, 1 / setup.top_k), [0, num_maps], setup.num_experts)


def _layer_s(engine: Any) -> float:
    """Time per layer of one iteration over all layers, experts 0 to K-1 demanded in each."""
    layers, top_k = layers_of(engine), setup_of(engine).top_k
    hidden = torch.zeros(1, model_of(engine).config.hidden_size)
    selected, weights = torch.arange(top_k)[None], torch.full((1, top_k), 1.0 / top_k)
    with torch.inference_mode():
        begin_s = time.perf_counter()
        for layer in layers:
            layer.experts(hidden, selected, weights)
        return (time.perf_counter() - begin_s) / len(layers)
