"""Applies routers ahead: layer l + s's norm and gate on the residual stream after layer l (DESIGN 2 and 4).

No code is specific to a model family. The decoder layer is the entry of the module list that holds the experts; its norm is the
child whose output reaches the router as input when one token runs through the model.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from finemoe.errors import EngineError, FinemoeError, first_line
from finemoe.maps.expert_map import keep_top
from finemoe.models.layers import MoELayer
from finemoe.runtime import seam
from finemoe.runtime.gates import distribution_of
from finemoe.runtime.snapshot import HostBuffers, Snapshot

_PARALLEL = 1 - 1e-5  # least cosine of vectors that are equal up to rounding to bf16


class AheadListener(Protocol):
    """Receives the choices of routers applied ahead when MoE layer `layer`'s decoder layer has run, if it wants them: for every
    stride a choice (None past the last layer) and its target layer."""

    def wants_ahead(self, layer: int) -> bool: ...

    def on_ahead(self, layer: int, choices: "Sequence[Choice | None]", targets: Sequence[int]) -> None: ...


class RoutersAhead:
    """Hooks on a model's decoder layers, from `attach` to `detach`, that apply routers ahead.

    Args:
        model: a Transformers MoE model.
        layers: its MoE layers.
        strides: s, how many MoE layers ahead.
        listener: receives the choices.
    Raises:
        FinemoeError: a MoE layer shares its decoder layer or has none, or its norm or router is not recognised.
    """

    def __init__(self, model: nn.Module, layers: Sequence[MoELayer], strides: Sequence[int], listener: AheadListener) -> None:
        self._layers, self._strides, self._listener = list(layers), tuple(strides), listener
        self._decoders = decoder_layers(model, layers)
        self._inputs = router_inputs(model, layers, self._decoders)
        self._undo: list[Callable[[], None]] = []

    def attach(self) -> None:
        """Register the hooks."""
        for decoder, layer in zip(self._decoders, self._layers, strict=True):
            hook = torch.compiler.disable(self._after_layer(layer.index))
            self._undo.append(decoder.register_forward_hook(hook).remove)

    def detach(self) -> None:
        """Remove every hook."""
        while self._undo:
            self._undo[-1]()
            self._undo.pop()

    def _choice_at(self, target: int, residual: torch.Tensor) -> "Choice":
        """What a layer's router makes of the residual stream, [..., h].

        Raises:
            EngineError: it does not return a row of scores per token.
        """
        layer, router = self._layers[target], self._layers[target].router
        assert router is not None
        with torch.no_grad():
            # Call `forward` directly, past the hooks: no other hook should take this for a running layer.
            reads = self._inputs[target]
            hidden = reads.norm.forward(residual)
            output = router.forward(hidden.reshape(-1, hidden.shape[-1]) if reads.is_flat else hidden, *reads.others)
        scores, selected = output[0], output[reads.place_of_index]
        if not isinstance(scores, torch.Tensor) or scores.shape[-1] < layer.num_experts:
            raise EngineError(_unknown(layer, "its router does not return a row of scores per token"))
        return Choice(scores.reshape(-1, scores.shape[-1]), selected.reshape(-1, selected.shape[-1]), layer.num_experts)

    def _after_layer(self, index: int) -> Callable[[nn.Module, Any, Any], None]:
        targets = [index + stride for stride in self._strides]

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._listener.wants_ahead(index):
                residual = residual_of(output)
                choices = [self._choice_at(at, residual) if at < len(self._layers) else None for at in targets]
                self._listener.on_ahead(index, choices, targets)

        return hook


@dataclass(frozen=True)
class Choice:
    """A router's result: scores [rows, J or more], the ids of selected experts [rows, K], and J."""

    scores: torch.Tensor
    selected: torch.Tensor
    num_experts: int


class AheadOutput:
    """The output of the routers applied ahead, before it is needed as distributions.

    Args:
        choices: one per stride, or None.
        layers: the layer that each is about.
        width: number of columns of the distributions.
        kept: how many experts of each distribution count (as in a trace).
        buffers: see Snapshot.
    """

    def __init__(
        self,
        choices: Sequence[Choice | None],
        layers: Sequence[int],
        width: int,
        kept: int,
        buffers: HostBuffers | None = None,
    ) -> None:
        self._layers, self._width, self._kept = layers, width, kept
        self._snapshots = [
            None if one is None else (Snapshot(one.scores, buffers), Snapshot(one.selected, buffers), one.num_experts)
            for one in choices
        ]

    def keep(self) -> None:
        """See `Snapshot.keep`."""
        for one in self._snapshots:
            if one is not None:
                one[0].keep()
                one[1].keep()

    def distributions(self, rows: np.ndarray | None, num_rows: int) -> np.ndarray:
        """[strides, B, width] float32 with the precision of a trace, each ranked as its router selects; zeros where a router
        could not be applied."""
        found = np.zeros((len(self._snapshots), num_rows, self._width), dtype=np.float32)
        for place, (snapshot, layer) in enumerate(zip(self._snapshots, self._layers, strict=True)):
            if snapshot is not None:
                scores, selected, num_experts = snapshot
                chosen = selected.rows(rows).astype(np.int64)
                found[place, :, :num_experts] = distribution_of(scores.rows(rows), chosen, num_experts, layer)
        return keep_top(found, self._kept)


def decoder_layers(model: nn.Module, layers: Sequence[MoELayer]) -> list[nn.Module]:
    """The decoder layer of each MoE layer.

    Raises:
        FinemoeError: a MoE layer is in none, shares it with another MoE layer, or has no recognised router.
    """
    names = [_list_entry(model, layer.name) for layer in layers]
    for layer, name in zip(layers, names, strict=True):
        if layer.router is None:
            raise FinemoeError(_unknown(layer, "it has no recognised router"))
        if not name or names.count(name) > 1:
            raise FinemoeError(_unknown(layer, "it is in no decoder layer, or shares one with another MoE layer"))
    return [model.get_submodule(name) for name in names]


@dataclass(frozen=True)
class RouterInput:
    """What a router reads: the output of a module of its decoder layer ([rows, h] if flat) and weights of the model; also the
    position of the selected experts' ids in the router's output."""

    norm: nn.Module
    is_flat: bool
    others: tuple[torch.Tensor, ...]
    place_of_index: int = -1


def router_inputs(model: nn.Module, layers: Sequence[MoELayer], decoders: Sequence[nn.Module]) -> list[RouterInput]:
    """What each layer's router reads, observed while one token runs through the model.

    Everything that could add to the residual stream is silenced meanwhile, so the norm before the router must read the very
    stream that entered the decoder layer.

    Raises:
        FinemoeError: the model does not run on a single token, or a router reads something else or hides its selection.
    """
    probes = [_InputSearch(model, layer, decoder) for layer, decoder in zip(layers, decoders, strict=True)]
    with ExitStack() as undo:
        for probe in probes:
            probe.attach(undo)
        try:
            with torch.no_grad():
                model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device), use_cache=False)
        except Exception as error:  # models may raise anything if inputs other than text are missing
            raise FinemoeError(_unknown(layers[0], f"the model does not run on a single token: {first_line(error)}")) from error
    return [probe.found() for probe in probes]


class _InputSearch:
    """Watches one decoder layer while a token runs: which module's output its router reads, and what that module reads."""

    def __init__(self, model: nn.Module, layer: MoELayer, decoder: nn.Module) -> None:
        self._layer, self._decoder = layer, decoder
        self._weights = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._outputs: dict[int, tuple[nn.Module, torch.Tensor, bool]] = {}  # by address; kept alive, so none is reused
        self._residual: torch.Tensor | None = None
        self._reads: RouterInput | None = None
        self._said: Any = None
        self._place_of_index = -1

    def attach(self, undo: ExitStack) -> None:
        """Hook the layer until `undo` runs."""
        router, decoder = self._layer.router, self._decoder
        assert router is not None
        undo.callback(seam.connect(self._layer.experts, self._run_experts))
        children = [child for child in decoder.children() if not any(module is router for module in child.modules())]
        for child in children:
            undo.callback(child.register_forward_hook(self._silence, with_kwargs=True).remove)
        undo.callback(decoder.register_forward_pre_hook(self._give_residual, with_kwargs=True).remove)
        undo.callback(router.register_forward_pre_hook(self._note_input, with_kwargs=True).remove)
        undo.callback(router.register_forward_hook(self._note_said).remove)

    def found(self) -> RouterInput:
        """The observed input, or a FinemoeError that explains why there is none."""
        if self._reads is None:
            raise FinemoeError(
                _unknown(self._layer, "its input does not come from a norm of its decoder layer on a single residual stream")
            )
        if self._place_of_index < 0:
            raise FinemoeError(_unknown(self._layer, "it does not return the ids of the experts it selects"))
        return replace(self._reads, place_of_index=self._place_of_index)

    def _give_residual(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Feed the layer one stream that no earlier module has made; several parallel streams are left unchanged."""
        entered = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(entered, torch.Tensor) or entered.ndim != 3:
            return None
        numbers = torch.arange(1, entered.numel() + 1, dtype=torch.float64, device=entered.device)
        self._residual = numbers.sin().to(entered.dtype).view(entered.shape)
        return ((self._residual, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": self._residual})

    def _silence(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if sum(self._is_like_residual(item) for item in args) > 1:
            return output  # it only adds a silenced module's output to the stream
        silent = _zeros(output)
        if isinstance(silent, torch.Tensor) and len(args) == 1 and not kwargs:
            self._outputs[silent.data_ptr()] = (module, silent, self._is_residual(args[0]))
        return silent

    def _is_like_residual(self, read: Any) -> bool:
        return self._residual is not None and isinstance(read, torch.Tensor) and read.numel() == self._residual.numel()

    def _is_residual(self, read: Any) -> bool:
        """Whether this is the stream that entered the layer, at most scaled, which a norm cancels."""
        if self._residual is None or not self._is_like_residual(read):
            return False
        one, other = read.double().flatten(), self._residual.double().flatten()
        return bool(one @ other > _PARALLEL * one.norm() * other.norm())

    def _note_input(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        is_known = args and not kwargs and all(id(other) in self._weights for other in args[1:])
        norm, _, reads_residual = self._outputs.get(args[0].data_ptr() if is_known else -1, (None, None, False))
        if norm is not None and reads_residual:
            self._reads = RouterInput(norm, args[0].ndim == 2, args[1:])

    def _note_said(self, module: nn.Module, args: Any, output: Any) -> None:
        self._said = output

    def _run_experts(
        self, module: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        items = self._said if isinstance(self._said, tuple) else ()
        self._place_of_index = next((place for place, item in enumerate(items) if item is top_k_index), -1)
        return torch.zeros_like(hidden_states)


def _zeros(output: Any) -> Any:
    """A module's output with its numbers replaced by zeros."""
    if isinstance(output, tuple):
        return tuple(_zeros(item) for item in output)
    return torch.zeros_like(output) if isinstance(output, torch.Tensor) and output.is_floating_point() else output


def residual_of(output: Any) -> torch.Tensor:
    """The residual stream in a decoder layer's output."""
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
