"""Observes a model's iterations from outside: embeddings, gate outputs, padding, and when a forward begins and ends.

Attach and detach are inverses; the model's class, signature and modules stay untouched.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

from finemoe.runtime.layers import MoELayer


class Listener(Protocol):
    """Who is told. `rows` are the indices of the token rows that count (padding left out), or None where all do."""

    def on_start(self, embeddings: torch.Tensor, is_prefill: bool, rows: torch.Tensor | None) -> None: ...

    def on_gate(self, layer: int, gate_output: torch.Tensor) -> None: ...

    def on_forward_end(self) -> None: ...


class Observer:
    """Forward hooks on the embedding layer, the routers and the model.

    Args:
        model: a Transformers model; layers: its MoE layers; listener: who is told; gates: whether gate outputs are wanted.
    """

    def __init__(self, model: nn.Module, layers: Sequence[MoELayer], listener: Listener, gates: bool = True) -> None:
        self._listener = listener
        self._mask: torch.Tensor | None = None
        embedding: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
        self._handles = [
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            embedding.register_forward_hook(self._after_embedding),
            model.register_forward_hook(self._after_forward),
        ]
        for layer in layers if gates else ():
            self._handles.append(layer.router.register_forward_hook(self._gate_hook(layer.index)))

    def detach(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()

    def _before_forward(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        self._mask = mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None

    def _after_embedding(self, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        num_tokens = output.shape[1]
        self._listener.on_start(output.flatten(0, 1), num_tokens > 1, self._valid_rows(num_tokens))

    def _valid_rows(self, num_tokens: int) -> torch.Tensor | None:
        if self._mask is None or num_tokens == 1:
            return None
        mask = self._mask[:, -num_tokens:].bool()
        return None if bool(mask.all()) else mask.flatten().nonzero().flatten()

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        self._listener.on_forward_end()

    def _gate_hook(self, layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            gate_output = output[0] if isinstance(output, tuple) else output
            self._listener.on_gate(layer, gate_output.reshape(-1, gate_output.shape[-1]))

        return hook
