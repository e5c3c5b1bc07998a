"""Observes a model's iterations from outside: embeddings, gate outputs, padding, and when a forward begins and ends.

Attach and detach are inverses; the model's class, signature and modules stay untouched.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from finemoe.runtime.layers import MoELayer


class Listener(Protocol):
    """Who is told. `rows` are the indices of the token rows that count (padding left out), or None where all do."""

    def on_forward_start(self) -> None: ...

    def on_start(self, embeddings: torch.Tensor, is_prefill: bool, rows: torch.Tensor | None) -> None: ...

    def on_router(self, layer: int, output: Any) -> None: ...

    def on_forward_end(self, is_complete: bool) -> bool: ...


class Observer:
    """Forward hooks on the embedding layer, the routers and the model.

    Args:
        model: a Transformers model; layers: its MoE layers; listener: who is told; gates: whether gate outputs are wanted.
    """

    def __init__(self, model: nn.Module, layers: Sequence[MoELayer], listener: Listener, gates: bool = True) -> None:
        self._listener = listener
        self._mask: torch.Tensor | None = None
        self._past_tokens: int | None = None
        # Where `generate` compiles the forward (static cache), the hooks are no part of the graph.
        self._handles = [
            model.register_forward_pre_hook(torch.compiler.disable(self._before_forward), with_kwargs=True),
            model.register_forward_hook(torch.compiler.disable(self._after_forward), always_call=True),
        ]
        embedding = embedding_of(model)
        if embedding is not None:
            self._handles.append(embedding.register_forward_hook(torch.compiler.disable(self._after_embedding)))
        for layer in layers if gates else ():
            if layer.router is not None:
                self._handles.append(layer.router.register_forward_hook(self._gate_hook(layer.index)))

    def detach(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()

    def _before_forward(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._listener.on_forward_start()
        mask, past = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        self._mask = mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None
        self._past_tokens = None if past is None else int(past.get_seq_length())

    def _after_embedding(self, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        num_tokens = output.shape[1] if output.ndim == 3 else output.shape[0]
        is_prefill = num_tokens > 1 if self._past_tokens is None else self._past_tokens == 0
        rows = output.reshape(-1, output.shape[-1])
        self._listener.on_start(rows, is_prefill, self._valid_rows(num_tokens, len(rows)))

    def _valid_rows(self, num_tokens: int, num_rows: int) -> torch.Tensor | None:
        if self._mask is None or num_tokens == 1 or self._mask.shape[1] < num_tokens or len(self._mask) * num_tokens != num_rows:
            return None
        mask = self._mask[:, -num_tokens:].bool()
        return None if bool(mask.all()) else mask.flatten().nonzero().flatten()

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        is_followed = True
        try:
            is_followed = self._listener.on_forward_end(output is not None)
        finally:
            if is_followed:  # what was said of it says nothing of an inner module that is called by itself afterwards
                self._mask = self._past_tokens = None

    def _gate_hook(self, layer: int) -> Callable[[nn.Module, Any, Any], None]:
        @torch.compiler.disable
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._listener.on_router(layer, output)

        return hook


def embedding_of(model: nn.Module) -> nn.Module | None:
    """The model's token-embedding layer, or None where it names none."""
    try:
        embedding: nn.Module | None = model.get_input_embeddings()  # type: ignore[operator]
    except (NotImplementedError, AttributeError):
        return None
    return embedding
