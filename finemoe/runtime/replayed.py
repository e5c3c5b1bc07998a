"""Replayed routing: a model's routers say what a trace recorded, so that a model with random weights routes like a trained one
(DESIGN 7.3). Bytes, kernels and links are then real and the routing realistic; the text is not.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from finemoe.errors import FinemoeError
from finemoe.runtime.layers import find_moe_layers
from finemoe.runtime.observer import embedding_of
from finemoe.traces import RoutingTrace

_LEAST = 1e-9  # of a probability whose logarithm is taken


class ReplayedRouting:
    """Overrides the routers of a model until it is detached; attach it before an engine, which then sees what was recorded.

    Args:
        model: whose routers give (scores [T, J], weights [T, K], index [T, K]), as Transformers' do.
        trace: recorded routing of a model with the same L x J / K.
    Raises:
        FinemoeError: the model has other layers or experts, or a layer without a router.
    """

    def __init__(self, model: nn.Module, trace: RoutingTrace) -> None:
        layers = find_moe_layers(model)
        found, expected = (len(layers), layers[0].num_experts), (trace.num_layers, trace.num_experts)
        if found != expected:
            raise FinemoeError(
                f"the model has {found[0]} layers x {found[1]} experts, the trace {expected[0]} x {expected[1]}; "
                "routing can be replayed on a model of the trace's sizes only"
            )
        routers = [layer.router for layer in layers if layer.router is not None]
        if len(routers) < len(layers):
            raise FinemoeError(f"{type(model).__name__} has a MoE layer whose router is not found, so its routing stays its own")
        self._model, self._trace = model, trace
        self._rows = slice(0, 0)
        self._logits = self._weights = self._index = torch.zeros(0)
        self._handles = [router.register_forward_hook(self._hook(layer), prepend=True) for layer, router in enumerate(routers)]

    def detach(self) -> None:
        """The routers speak for themselves again."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> "ReplayedRouting":
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    @torch.inference_mode()
    def serve(self, request: int) -> None:
        """Run one recorded request: its prefill, then its decode steps, with the tokens that were recorded."""
        rows = self._trace.rows_of(request)
        self._upload(rows)
        cache = None
        for _, _, iteration in self._trace.select([request]).iterations():
            self._rows = iteration
            tokens = self._tokens(slice(rows.start + iteration.start, rows.start + iteration.stop))
            cache = self._model(input_ids=tokens[None], past_key_values=cache, use_cache=True).past_key_values

    def _upload(self, rows: slice) -> None:
        """A request's routing on the device, before it is timed."""
        device = next(self._model.parameters()).device
        chosen = self._trace.expert_probs[rows].astype(np.float32)
        self._logits = torch.from_numpy(np.log(np.maximum(self._trace.maps(rows), _LEAST))).to(device)
        self._weights = torch.from_numpy(chosen / chosen.sum(axis=-1, keepdims=True)).to(device)
        self._index = torch.from_numpy(self._trace.expert_ids[rows].astype(np.int64)).to(device)

    def _tokens(self, rows: slice) -> torch.Tensor:
        recorded = self._trace.tokens
        tokens = np.zeros(rows.stop - rows.start, dtype=np.int64) if recorded is None else recorded[rows].astype(np.int64)
        vocabulary = self._model.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
        return torch.from_numpy(tokens % vocabulary).to(self._logits.device)

    def _hook(self, layer: int) -> Any:
        def replayed(module: nn.Module, args: Any, output: Any) -> Any:
            scores, weights, index, *rest = output
            logits = self._logits[self._rows, layer].to(scores.dtype)
            return (
                logits,
                self._weights[self._rows, layer].to(weights.dtype),
                self._index[self._rows, layer].to(index.dtype),
                *rest,
            )

        return replayed


def with_embeddings_of(model: nn.Module, trace: RoutingTrace, seed: int = 0) -> RoutingTrace:
    """Give a model's token embeddings the directions that a trace recorded, in its own width, and return the trace with them.

    Cosines stay what they were (the recorded vectors are turned by an orthonormal matrix), so that semantic search finds what it
    would have found.

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
        raise FinemoeError(f"the model's embeddings have {wide} values, the recorded ones {narrow}; take a wider model")
    turned = np.linalg.qr(np.random.default_rng(seed).standard_normal((wide, narrow)))[0]
    table = (trace.embedding_table.astype(np.float64) @ turned.T).astype(np.float16)
    tokens, first = np.unique(trace.tokens % len(weight), return_index=True)
    with torch.no_grad():
        weight[torch.from_numpy(tokens.astype(np.int64))] = torch.from_numpy(table[trace.embedding_index[first]]).to(weight)
    return replace(trace, embedding_table=table)
