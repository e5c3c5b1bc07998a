"""Replays recorded routing: a model's routers return what a trace recorded, so a model with random weights routes like a trained
one (DESIGN 7.3). Bytes, kernels and links are then real and the routing is realistic; the text is not.
"""

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from finemoe.errors import FinemoeError
from finemoe.models.layers import find_moe_layers
from finemoe.runtime.observer import embedding_of
from finemoe.traces import RoutingTrace

_LEAST = 1e-9  # lower bound of probabilities before taking logarithms


class ReplayedRouting:
    """Overrides the routers of a model while `serve` runs a recorded request; an engine then sees the recorded routing.

    Routers that are applied ahead return the trace's recorded look-ahead. Any other forward routes as the model itself does.

    Args:
        model: a model whose routers return (scores [T, J], weights [T, K], index [T, K]), as Transformers' do.
        trace: recorded routing of a model with the same L x J / K.
        overrides: False leaves the routers alone: the recorded requests are served with the model's own routing.
    Raises:
        FinemoeError: the model differs from the trace in layers or experts, or has a layer without a router.
    """

    def __init__(self, model: nn.Module, trace: RoutingTrace, overrides: bool = True) -> None:
        layers = find_moe_layers(model)
        found, expected = (len(layers), layers[0].num_experts), (trace.num_layers, trace.num_experts)
        if found != expected:
            raise FinemoeError(
                f"the model has {found[0]} layers x {found[1]} experts, the trace {expected[0]} x {expected[1]}; "
                "replay the trace on a model of its sizes"
            )
        routers = [layer.router for layer in layers if layer.router is not None] if overrides else []
        if overrides and len(routers) < len(layers):
            raise FinemoeError(
                f"{type(model).__name__} has a MoE layer without a recognised router, so routing cannot be replayed on it"
            )
        self._model, self._trace = model, trace
        self._rows = slice(0, 0)
        self._logits = self._weights = self._index = torch.zeros(0)
        self._said_ahead: dict[int, torch.Tensor] = {}
        self._layer, self._is_called = -1, False
        self._undo = ExitStack()
        for layer, router in enumerate(routers):
            self._undo.callback(router.register_forward_pre_hook(self._note(layer)).remove)
            router.forward = self._instead_of(router.forward, layer)
            self._undo.callback(delattr, router, "forward")

    def detach(self) -> None:
        """Restore the routers' own behaviour."""
        self._undo.close()

    def __enter__(self) -> "ReplayedRouting":
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    @torch.inference_mode()
    def serve(self, request: int) -> list[float]:
        """Run one recorded request: its prefill, then its decode steps, with the recorded tokens.

        Returns:
            Seconds that each iteration took until the device had computed it.
        """
        rows = self._trace.rows_of(request)
        self._upload(rows)
        cache, durations_s = None, []
        for _, _, iteration in self._trace.select([request]).iterations():
            self._rows = iteration
            tokens = self._tokens(slice(rows.start + iteration.start, rows.start + iteration.stop))
            begin_s = _now_s(tokens.device)
            cache = self._model(input_ids=tokens[None], past_key_values=cache, use_cache=True).past_key_values
            durations_s.append(_now_s(tokens.device) - begin_s)
        self._rows = slice(0, 0)
        return durations_s

    def _upload(self, rows: slice) -> None:
        """Copy a request's routing to the device before timing starts."""
        device = next(self._model.parameters()).device
        chosen = self._trace.expert_probs[rows].astype(np.float32)
        self._logits = _logits(self._trace.maps(rows)).to(device)
        self._said_ahead = {
            stride: _logits(self._trace.lookahead(rows, stride)).to(device) for stride in self._trace.lookahead_strides
        }
        self._weights = torch.from_numpy(chosen / chosen.sum(axis=-1, keepdims=True)).to(device)
        self._index = torch.from_numpy(self._trace.expert_ids[rows].astype(np.int64)).to(device)

    def _tokens(self, rows: slice) -> torch.Tensor:
        recorded = self._trace.tokens
        tokens = np.zeros(rows.stop - rows.start, dtype=np.int64) if recorded is None else recorded[rows].astype(np.int64)
        vocabulary = self._model.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
        return torch.from_numpy(tokens % vocabulary).to(self._logits.device)

    def _note(self, layer: int) -> Any:
        def note(module: nn.Module, args: Any) -> None:
            self._layer, self._is_called = layer, True

        return note

    def _instead_of(self, forward: Any, layer: int) -> Any:
        def replayed(*args: Any, **kwargs: Any) -> Any:
            scores, weights, index, *rest = forward(*args, **kwargs)
            is_called, self._is_called = self._is_called, False  # a forward without the module's call is applied ahead
            if self._rows == slice(0, 0):
                return scores, weights, index, *rest
            if not is_called:
                return self._ahead(layer, scores), weights, index, *rest
            self._take_types(scores, weights, index)
            return self._logits[self._rows, layer], self._weights[self._rows, layer], self._index[self._rows, layer], *rest

        return replayed

    def _take_types(self, scores: torch.Tensor, weights: torch.Tensor, index: torch.Tensor) -> None:
        """Convert to the routers' own types once per request, not in every timed layer."""
        if self._logits.dtype != scores.dtype:
            self._logits = self._logits.to(scores.dtype)
        if self._weights.dtype != weights.dtype:
            self._weights = self._weights.to(weights.dtype)
        if self._index.dtype != index.dtype:
            self._index = self._index.to(index.dtype)

    def _ahead(self, layer: int, scores: torch.Tensor) -> torch.Tensor:
        """A layer's recorded look-ahead from the residual stream of the layer that ran last; the router's own answer if none was
        recorded."""
        said = self._said_ahead.get(layer - self._layer)
        return scores if said is None else said[self._rows, self._layer].to(scores.dtype)


def _logits(probs: np.ndarray) -> torch.Tensor:
    """Scores whose softmax yields these probabilities."""
    return torch.from_numpy(np.log(np.maximum(probs, _LEAST)))


def _now_s(device: torch.device) -> float:
    """The time when the device has finished all its work (copies ahead continue)."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return time.perf_counter()


def with_embeddings_of(model: nn.Module, trace: RoutingTrace, seed: int = 0) -> RoutingTrace:
    """Give a model's token embeddings the directions that a trace recorded, in the model's own width.

    Cosines are preserved (an orthonormal matrix rotates the recorded vectors), so semantic search finds what it would have found.

    Returns:
        The trace with the new embeddings.
    Raises:
        FinemoeError: the trace holds no embeddings or tokens, or the model is narrower than they are.
    """
    embedding = embedding_of(model)
    if trace.embedding_table is None or trace.embedding_index is None or trace.tokens is None or embedding is None:
        raise FinemoeError("the trace holds no embeddings with their tokens; record it with finemoe.record")
    weight = embedding.weight
    assert isinstance(weight, torch.Tensor)
    narrow, wide = trace.embedding_table.shape[1], weight.shape[1]
    if narrow > wide:
        raise FinemoeError(f"the model's embeddings have {wide} values, the recorded ones {narrow}; use a wider model")
    turned = np.linalg.qr(np.random.default_rng(seed).standard_normal((wide, narrow)))[0]
    table = (trace.embedding_table.astype(np.float64) @ turned.T).astype(np.float16)
    tokens, first = np.unique(trace.tokens % len(weight), return_index=True)
    with torch.no_grad():
        weight[torch.from_numpy(tokens.astype(np.int64))] = torch.from_numpy(table[trace.embedding_index[first]]).to(weight)
    return replace(trace, embedding_table=table)
