"""Records a model's forwards for the token rows that a trace holds: gates, experts and embeddings."""

import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from finemoe.errors import FinemoeError
from finemoe.maps.expert_map import lookahead_width, top_ids
from finemoe.models.layers import MoELayer
from finemoe.runtime.gates import GateOutput, scores_of
from finemoe.runtime.lookahead import AheadOutput, Choice, RoutersAhead
from finemoe.runtime.observer import Observer
from finemoe.runtime.phases import Forward

_threads: "weakref.WeakKeyDictionary[nn.Module, int]" = weakref.WeakKeyDictionary()  # the thread that has a tape on a model

_RUNS_ELSEWHERE = "this model's MoE layers do not all run once on every token of a text, which record does not support"


@dataclass(frozen=True)
class Fed:
    """What a forward feeds: `tokens` [B x n], of which the rows `new` (ascending) are kept."""

    tokens: np.ndarray
    new: np.ndarray

    @property
    def num_rows(self) -> int:
        return len(self.tokens)


class Forwards(Protocol):
    """Knows what the next forward feeds."""

    def next_forward(self) -> Fed | None: ...

    def require_begun(self) -> None: ...


class Tape:
    """Hooks on a model, from `attach` to `detach`, and what they kept of this thread's forwards.

    Args:
        model: a Transformers MoE model.
        layers: its MoE layers.
        strides: how many layers ahead routers are applied.
    Raises:
        FinemoeError: the model has layers of different widths. Also on attaching, if a router cannot be applied ahead or another
            thread has a tape on this model: each would undo the other's changes.
    """

    def __init__(self, model: nn.Module, layers: Sequence[MoELayer], strides: Sequence[int]) -> None:
        self._layers, self._num_experts = layers, layers[0].num_experts
        if any(layer.num_experts != self._num_experts for layer in layers):
            raise FinemoeError("this model's MoE layers differ in number of experts, which a trace cannot hold")
        self.is_whole = True  # whether every router scored every expert, so that maps are complete
        self._forwards: Forwards | None = None
        self._fed: Fed | None = None
        self._router_output: Any = None
        self._kept: dict[tuple[str, int], list[np.ndarray]] = {}  # by (name, layer): rows of each forward
        self._model, self._strides = model, strides
        self._undo = ExitStack()
        self._thread = threading.get_ident()

    def attach(self) -> None:
        """Register the hooks."""
        with ExitStack() as undo:
            if self._model not in _threads:
                undo.callback(_threads.pop, self._model, None)
            if _threads.setdefault(self._model, self._thread) != self._thread:
                undo.pop_all()
                raise FinemoeError("another thread is recording this model; wait for it, or give each thread its own model")
            if self._strides:
                ahead = RoutersAhead(self._model, self._layers, self._strides, self)
                undo.callback(ahead.detach)
                ahead.attach()
            observer = Observer(self._model, self._layers, self)
            undo.callback(observer.detach)
            observer.attach({layer.index: self._hear_router for layer in self._layers})
            for layer in self._layers:
                undo.callback(layer.experts.register_forward_pre_hook(self._experts_hook(layer)).remove)
            self._undo = undo.pop_all()

    def detach(self) -> None:
        """Remove the hooks."""
        self._undo.close()

    def begin(self, forwards: Forwards) -> None:
        """Forget what was kept; `forwards` knows the forwards that follow."""
        self._forwards, self._fed, self._router_output = forwards, None, None
        self._kept = {}

    def rows(self) -> dict[str, np.ndarray]:
        """What was kept, every row of every forward in order: embeddings [N, h], probs [N, L, J], selected [N, L, K] and, where
        routers were applied ahead, ahead_ids and ahead_probs [N, L, S, M]."""
        numbers = range(len(self._layers))
        names = sorted({name for name, _ in self._kept} - {"embeddings"})
        of_layers = {name: np.stack([np.concatenate(self._kept[name, number]) for number in numbers], axis=1) for name in names}
        return of_layers | {"embeddings": np.concatenate(self._kept["embeddings", 0])}

    def on_forward_start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._is_own_thread():
            return
        self._fed = None if self._forwards is None else self._forwards.next_forward()
        if self._fed is not None:
            _require_tokens(self._fed, args, kwargs)

    def on_start(self, embeddings: torch.Tensor, forward: Forward) -> None:
        if not self._is_own_thread():
            return
        self._require_begun()
        if self._fed is not None and len(embeddings) == self._fed.num_rows:
            self._keep("embeddings", 0, embeddings[self._fed.new].float().cpu().numpy().astype(np.float16))

    def _hear_router(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._is_own_thread():
            self._router_output = output

    def on_experts(self, layer: MoELayer, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> None:
        """Keep what the experts were actually called with: the activated set comes from here, not from the router."""
        if not self._is_own_thread():
            return
        self._require_begun()
        output, self._router_output = self._router_output, None
        if self._fed is None:
            return
        if len(top_k_index) != self._fed.num_rows:
            raise FinemoeError(_RUNS_ELSEWHERE)
        selected = top_k_index.cpu().numpy()
        _require_holdable(layer, selected[self._fed.new])
        scores = scores_of(output, top_k_index)
        gate = GateOutput(layer.index, self._num_experts, self._num_experts, scores, selected, top_k_weights)
        self.is_whole = self.is_whole and gate.is_whole
        self._keep("probs", layer.index, gate.distribution(self._fed.new).astype(np.float16))
        self._keep("selected", layer.index, selected[self._fed.new])

    def wants_ahead(self, layer: int) -> bool:
        return self._fed is not None and self._is_own_thread()

    def on_ahead(self, layer: int, choices: Sequence[Choice | None], targets: Sequence[int]) -> None:
        """Keep what the routers applied ahead return after a layer, for every stride."""
        assert self._fed is not None
        top_k = self._kept["selected", layer][-1].shape[-1]
        ids, probs = _said_ahead(choices, targets, self._num_experts, top_k, self._fed)
        self._keep("ahead_ids", layer, ids)
        self._keep("ahead_probs", layer, probs)

    def on_forward_complete(self) -> None:
        if self._fed is None or not self._is_own_thread():
            return
        counts = {len(self._kept.get(("selected", layer.index), ())) for layer in self._layers}
        widths = {self._kept["selected", layer.index][-1].shape[1] for layer in self._layers} if len(counts) == 1 else set()
        if counts != {len(self._kept.get(("embeddings", 0), ()))} or len(widths) != 1:
            raise FinemoeError(_RUNS_ELSEWHERE)

    def on_forward_end(self) -> None:
        if self._is_own_thread():
            self._fed = None

    def _keep(self, name: str, layer: int, rows: np.ndarray) -> None:
        self._kept.setdefault((name, layer), []).append(rows)

    def _is_own_thread(self) -> bool:
        return threading.get_ident() == self._thread

    def _require_begun(self) -> None:
        if self._forwards is not None:
            self._forwards.require_begun()

    def _experts_hook(self, layer: MoELayer) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            self.on_experts(layer, args[1], args[2])

        return hook


def _require_tokens(fed: Fed, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a forward over tokens that `generate` did not prepare, for example if a caller's code runs the model in between.

    Raises:
        FinemoeError: the tokens differ.
    """
    tokens = kwargs.get("input_ids", args[0] if args else None)
    if not isinstance(tokens, torch.Tensor) or tokens.is_floating_point():
        return
    if not np.array_equal(tokens.flatten().cpu().numpy(), fed.tokens):
        raise FinemoeError(
            "the model is fed tokens that generate did not prepare (by a hook, or by code that runs the model in between), which "
            "record cannot follow"
        )


def _said_ahead(
    choices: Sequence[Choice | None], targets: Sequence[int], num_experts: int, top_k: int, fed: Fed
) -> tuple[np.ndarray, np.ndarray]:
    """The most probable experts of routers applied ahead and their probabilities: [n, S, M] each, as in a trace."""
    said = AheadOutput(choices, targets, num_experts, kept=num_experts)
    probs = said.distributions(fed.new, len(fed.new)).transpose(1, 0, 2)
    ids = top_ids(probs, lookahead_width(num_experts, top_k))
    ids[:, [place for place, one in enumerate(choices) if one is None]] = 0
    return ids, np.take_along_axis(probs, ids, axis=-1).astype(np.float16)


def _require_holdable(layer: MoELayer, selected: np.ndarray) -> None:
    """Refuse at once what a trace would refuse after all the work.

    Raises:
        FinemoeError: a token does not have K different experts.
    """
    ordered = np.sort(selected, axis=-1)
    twice = np.argwhere(ordered[:, 1:] == ordered[:, :-1])
    if len(twice):
        expert = ordered[tuple(twice[0])]
        raise FinemoeError(
            f"{layer.name!r} lists expert {expert} twice for one token (as a table of zeros does); a trace holds K different "
            "experts per token, so this model cannot be recorded"
        )
    if (ordered >= layer.num_experts).any():
        raise FinemoeError(
            f"{layer.name!r} selects {ordered.max()}, but its experts are 0..{layer.num_experts - 1} (a class for no "
            "expert); a trace holds K experts per token, so this model cannot be recorded"
        )
