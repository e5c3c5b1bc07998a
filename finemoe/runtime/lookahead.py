"""The routers applied ahead: layer l + s's norm and gate on the residual stream after layer l (DESIGN 2 and 4).

Found without any per-family code: the decoder layer is the entry of the module list that holds the experts, and its norm is the
child whose output turns up as the router's input when one token is run through the model.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from finemoe.errors import EngineError, FinemoeError
from finemoe.maps.expert_map import keep_top
from finemoe.runtime import seam
from finemoe.runtime.gates import as_recorded, distribution_of
from finemoe.runtime.layers import MoELayer
from finemoe.runtime.snapshot import HostBuffers, Snapshot

OnResidual = Callable[[int, torch.Tensor], None]


class RoutersAhead:
    """Hooks on a model's decoder layers, and what they need to apply routers ahead.

    Args:
        model: a Transformers MoE model; layers: its MoE layers; strides: s, how many MoE layers ahead.
        on_residual: called with (layer, residual stream [..., h]) when the decoder layer of MoE layer `layer` has run.
    Raises:
        FinemoeError: some MoE layer is not in a decoder layer of its own, or its norm or router is not recognised.
    """

    def __init__(self, model: nn.Module, layers: Sequence[MoELayer], strides: Sequence[int], on_residual: OnResidual) -> None:
        self._layers, self._strides, self._on_residual = list(layers), tuple(strides), on_residual
        decoders = decoder_layers(model, layers)
        self._inputs = router_inputs(model, layers, decoders)
        hooks = zip(decoders, layers, strict=True)
        self._handles = [
            decoder.register_forward_hook(torch.compiler.disable(self._after_layer(layer.index))) for decoder, layer in hooks
        ]

    def detach(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()

    def targets(self, layer: int) -> list[int]:
        """The MoE layers that the strides lead to from `layer`, past the last one too."""
        return [layer + stride for stride in self._strides]

    def scores(self, layer: int, residual: torch.Tensor) -> list[torch.Tensor | None]:
        """For every stride the output of the router of layer + s, [rows, J]; None past the last layer.

        Raises:
            EngineError: that router gives no row of scores per token.
        """
        return [self._scores_at(at, residual) if at < len(self._layers) else None for at in self.targets(layer)]

    def _scores_at(self, target: int, residual: torch.Tensor) -> torch.Tensor:
        layer, router = self._layers[target], self._layers[target].router
        assert router is not None
        with torch.no_grad():
            # Their own forwards, past the hooks: nobody else is to take this for a layer that runs.
            reads = self._inputs[target]
            hidden = reads.norm.forward(residual)
            output = router.forward(hidden.reshape(-1, hidden.shape[-1]) if reads.is_flat else hidden, *reads.others)
        scores = output[0] if isinstance(output, tuple) else output
        if not isinstance(scores, torch.Tensor) or scores.shape[-1] != layer.num_experts:
            raise EngineError(_unknown(layer, "its router gives no row of scores per token"))
        return scores.reshape(-1, layer.num_experts)

    def _after_layer(self, index: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._on_residual(index, residual_of(output))

        return hook


class AheadOutput:
    """What the routers applied ahead said, before anyone needs it as distributions.

    Args:
        scores: per stride [rows, J], or None. layers: the layer each is about. width: columns of the distributions.
        kept: how many experts of each distribution count (as in a trace). buffers: see Snapshot.
    """

    def __init__(
        self,
        scores: Sequence[torch.Tensor | None],
        layers: Sequence[int],
        width: int,
        kept: int,
        buffers: HostBuffers | None = None,
    ) -> None:
        self._snapshots = [None if one is None else Snapshot(one, buffers) for one in scores]
        self._layers, self._width, self._kept = layers, width, kept

    def distributions(self, rows: np.ndarray | None, num_rows: int) -> np.ndarray:
        """[strides, B, width] float32 with the precision of a trace; zeros where a router could not be applied."""
        found = np.zeros((len(self._snapshots), num_rows, self._width), dtype=np.float32)
        for place, (snapshot, layer) in enumerate(zip(self._snapshots, self._layers, strict=True)):
            if snapshot is not None:
                probs = distribution_of(snapshot.rows(rows), layer)
                found[place, :, : probs.shape[1]] = probs
        return keep_top(as_recorded(found), self._kept)


def decoder_layers(model: nn.Module, layers: Sequence[MoELayer]) -> list[nn.Module]:
    """The decoder layer that each MoE layer is in.

    Raises:
        FinemoeError: one is in none, shares it with another MoE layer, or has no router that is recognised.
    """
    names = [_list_entry(model, layer.name) for layer in layers]
    for layer, name in zip(layers, names, strict=True):
        if layer.router is None:
            raise FinemoeError(_unknown(layer, "it has no router that is recognised"))
        if not name or names.count(name) > 1:
            raise FinemoeError(_unknown(layer, "it is not in a decoder layer of its own"))
    return [model.get_submodule(name) for name in names]


@dataclass(frozen=True)
class RouterInput:
    """What a router reads: the output of a module of its decoder layer ([rows, h] if flat), and weights of the model."""

    norm: nn.Module
    is_flat: bool
    others: tuple[torch.Tensor, ...]


def router_inputs(model: nn.Module, layers: Sequence[MoELayer], decoders: Sequence[nn.Module]) -> list[RouterInput]:
    """What the router of each layer reads, seen while one token runs through the model.

    Raises:
        FinemoeError: the model does not run on a token alone, or a router reads something else.
    """
    found: dict[int, RouterInput] = {}
    weights = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    with ExitStack() as undo:
        for layer, decoder in zip(layers, decoders, strict=True):
            undo.callback(seam.connect(layer.experts, lambda module, hidden_states, *_: torch.zeros_like(hidden_states)))
            for handle in _watch(layer, decoder, weights, found):
                undo.callback(handle.remove)
        try:
            with torch.no_grad():
                model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device), use_cache=False)
        except Exception as error:  # models raise what they like when something else than text is missing
            raise FinemoeError(_unknown(layers[0], f"the model does not run on a token alone: {error}")) from error
    for layer in layers:
        if layer.index not in found:
            raise FinemoeError(_unknown(layer, "what it reads is not one of its decoder layer's norms of one residual stream"))
    return [found[layer.index] for layer in layers]


def _watch(layer: MoELayer, decoder: nn.Module, weights: set[int], found: dict[int, RouterInput]) -> list[Any]:
    outputs: dict[int, tuple[nn.Module, torch.Tensor]] = {}  # by address; held, so that no later tensor gets an earlier one's

    def note_output(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and len(args) == 1 and not kwargs:
            outputs[output.data_ptr()] = (module, output)

    def note_input(module: nn.Module, args: Any, kwargs: Any) -> None:
        is_known = args and not kwargs and all(id(other) in weights for other in args[1:])
        if is_known and args[0].data_ptr() in outputs:
            norm, _ = outputs[args[0].data_ptr()]
            found[layer.index] = RouterInput(norm, args[0].ndim == 2, args[1:])

    def check_residual(module: nn.Module, args: Any, output: Any) -> None:
        if residual_of(output).ndim != 3:  # several residual streams side by side
            found.pop(layer.index, None)

    router = layer.router
    assert router is not None
    children = [child for child in decoder.children() if not any(module is router for module in child.modules())]
    hooks = [child.register_forward_hook(note_output, with_kwargs=True) for child in children]
    hooks.append(decoder.register_forward_hook(check_residual))
    return [*hooks, router.register_forward_pre_hook(note_input, with_kwargs=True)]


def residual_of(output: Any) -> torch.Tensor:
    """The residual stream in what a decoder layer returned."""
    residual: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return residual


def _list_entry(model: nn.Module, name: str) -> str:
    """The longest prefix of a module's name that is an entry of a module list, or ''."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        if isinstance(model.get_submodule(".".join(parts[: end - 1])), nn.ModuleList):
            return ".".join(parts[:end])
    return ""


def _unknown(layer: MoELayer, reason: str) -> str:
    what_to_do = "use a policy that does not look ahead, or record without lookahead"
    return f"the router of {layer.name!r} cannot be applied ahead ({reason}); {what_to_do}"
