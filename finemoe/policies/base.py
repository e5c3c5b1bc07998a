"""The interface between a policy and an executor (DESIGN 2).

An executor calls `start_iteration`, then `on_gate` for every layer, then `end_iteration`. The first two return predictions, which
the executor stores, loads experts from, and passes to its eviction rule. `predict_block` and `gate_step` give the same answers
faster. A policy never touches a weight, a clock or a thread.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from finemoe.compiling import njit
from finemoe.errors import FinemoeError
from finemoe.maps import ranking
from finemoe.maps.ranking import are_within
from finemoe.maps.selection import select_experts, thresholds_of
from finemoe.policies.block import Block
from finemoe.policies.gate_step import GateStep
from finemoe.policies.predictions import Predictions
from finemoe.stale_kernels import forget_stale_kernels
from finemoe.traces import RoutingTrace
from finemoe.units import is_whole

forget_stale_kernels(__file__, ranking.__file__)
_GREATEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class PolicySetup:
    """What a policy knows about its model and its run.

    Attributes:
        num_layers, num_experts, top_k: L, J, K; embedding_dim: h (0 without embeddings).
        prefetch_distance: d in layers; store_capacity: C in maps.
        history: a RoutingTrace or ExpertMapStore of other requests, or None to learn online.
        model: identity of the model. seed: for policies that draw random numbers.
        stream_prompts_from: number of rows from which a prompt is streamed (`Policy.streams`); None never streams.
    Raises:
        FinemoeError: d is not in 1..L, C or a number of rows is not a positive whole number, or the history is of another model.
    """

    num_layers: int
    num_experts: int
    top_k: int
    embedding_dim: int = 0
    prefetch_distance: int = 3
    store_capacity: int = 1000
    history: Any = None
    model: str = ""
    seed: int = 0
    stream_prompts_from: int | None = None

    def __post_init__(self) -> None:
        if not (is_whole(self.prefetch_distance) and 1 <= self.prefetch_distance <= self.num_layers):
            raise FinemoeError(
                f"prefetch_distance is {self.prefetch_distance!r}; it must be in 1..{self.num_layers} (the number of layers)"
            )
        if not (is_whole(self.store_capacity) and self.store_capacity >= 1):
            raise FinemoeError(f"store_capacity is {self.store_capacity!r}; it must be a whole number of maps, at least 1")
        if self.stream_prompts_from is not None and not (is_whole(self.stream_prompts_from) and self.stream_prompts_from >= 1):
            raise FinemoeError(
                f"stream_prompts_from is {self.stream_prompts_from!r}; it must be a number of tokens, at least 1, or None, "
                "to stream no prompt"
            )
        for name in ("prefetch_distance", "store_capacity"):
            object.__setattr__(self, name, int(getattr(self, name)))  # a plain int, since it is saved with a store
        known = getattr(self.history, "model", "")
        if self.model and known and _family(known) != _family(self.model):
            raise FinemoeError(f"the history is of {known!r}, not of {self.model!r}; record one with this model")


def _family(identity: str) -> str:
    """A model's identity without the digest of its weights, which depends on their data type."""
    return identity.rpartition("-")[0] or identity


@dataclass(frozen=True)
class Context:
    """What is known when an iteration starts.

    Attributes:
        embeddings: [B, h] float32 semantic embeddings, or None; one row per sequence in decode, per token in prefill.
        is_prefill: whether this is a prefill; None if it mixes prefill and decode (continuous batching), or if unknown.
        starts_request: whether this is the first iteration of a request (or of a batch of requests), and not of a further turn of
            a conversation that is known.
        num_rows: number of rows B, also if there are no embeddings.
        is_streamed: whether the executor streams the iteration (`Policy.streams`), so that predictions load nothing.
    """

    embeddings: np.ndarray | None
    is_prefill: bool | None
    starts_request: bool
    num_rows: int = 1
    is_streamed: bool = False


class Prediction(NamedTuple):
    """What a policy expects of one layer.

    Attributes:
        layer: the layer predicted.
        probabilities: [J] float32, its predicted distribution (maximum over rows). An eviction rule may read it, and recall is
            measured on it when the layer's gate fires.
        experts: [n] ascending ids of the experts to prefetch.
    """

    layer: int
    probabilities: np.ndarray
    experts: np.ndarray

    def with_experts(self, experts: np.ndarray) -> "Prediction":
        """The same prediction with these experts to prefetch instead."""
        return Prediction(self.layer, self.probabilities, experts)


class Policy(ABC):
    """One system of the paper.

    Attributes:
        needs_context: whether the executor must pass embeddings and gate outputs at all.
        lookahead: strides s at which the policy needs routers applied ahead (the router of layer l + s on the residual stream
            after layer l); `on_gate` receives their output.
        is_synchronous: whether inference waits for prefetched experts (section 3).
        loads_whole_layers: whether a running layer loads all of its experts, activated or not; such a policy predicts nothing.
        holds_everything: whether every expert stays on the device, regardless of the expert memory.
        least_gain: minimum by which a prefetched expert must be worth more than the expert it would evict, in units of the
            eviction rule; None to load everything that the policy requests.
        saves: whether the policy saves what it learned when the run ends (`save`).
        needs_future: whether it runs only where the future is known (replay).
        default_eviction: name of the eviction rule that the system uses.
    """

    needs_context = True
    lookahead: tuple[int, ...] = ()
    is_synchronous = False
    loads_whole_layers = False
    holds_everything = False
    least_gain: float | None = None
    saves = False
    needs_future = False
    default_eviction = "lru"

    def __init__(self, setup: PolicySetup) -> None:
        self.setup = setup

    def __init_subclass__(cls, **options: Any) -> None:
        """Reset shortcuts that no longer match: a subclass that overrides any method, directly or by a mixin, is called step by
        step and in Python, unless it also defines `predict_block` or `gate_step` itself."""
        super().__init_subclass__(**options)
        if cls.loads_whole_layers and cls.needs_context:
            raise FinemoeError(f"{cls.__name__} loads whole layers and therefore predicts none: set needs_context = False")
        for shortcut in ("predict_block", "gate_step"):
            for kind in cls.__mro__:
                if shortcut in vars(kind):
                    break
                if any(callable(value) for name, value in vars(kind).items() if not name.startswith("__")):
                    setattr(cls, shortcut, getattr(Policy, shortcut))
                    break

    def streams(self, num_rows: int, is_prefill: bool | None) -> bool:
        """Whether to stream an iteration: its rows demand nearly every expert, so each layer is loaded before its gate fires
        (`cache.streaming`), and predictions only serve eviction and recall.

        Called only for iterations of at least `setup.stream_prompts_from` rows. A system that waits for its prefetches, or that
        holds, loads or knows everything anyway, never streams.

        Args:
            num_rows, is_prefill: as in Context.
        """
        never = self.is_synchronous or self.holds_everything or self.loads_whole_layers or self.needs_future
        return not never and is_prefill is not False

    @abstractmethod
    def start_iteration(self, context: Context) -> list[Prediction]:
        """Predict before layer 1, when no gate has fired yet."""

    @abstractmethod
    def on_gate(
        self, layer: int, probs: np.ndarray, experts: np.ndarray, lookahead: np.ndarray | None = None
    ) -> list[Prediction]:
        """Predict after the gate of `layer` has fired.

        Args:
            layer: the layer, counted from 0.
            probs: [B, J] its distribution, which ranks experts as the router selects them.
            experts: [B, K] the selected experts.
            lookahead: [strides, B, J] output of the routers applied ahead, zero past the last layer; None if unavailable.
        """

    @abstractmethod
    def end_iteration(self) -> None:
        """Finish the iteration: the last layer has run."""

    def save(self) -> None:
        """Save what was learned. Called only if `saves` is set, at the end of the run, as the last call."""
        return None

    def learned(self) -> dict[str, np.ndarray]:
        """What the policy learned from the requests served, by name; empty if it learns nothing. A warm-up profile keeps it."""
        return {}

    def restore(self, learned: Mapping[str, np.ndarray]) -> None:
        """Go on from what `learned` returned in an earlier run of the same model."""
        return None

    def predict_block(self, block: Block) -> Predictions | None:
        """The answers of `start_iteration` and `on_gate` for all iterations of a block, bit for bit; None to be called step by
        step. A replay tries this first, since a policy that learns nothing within a block answers faster all at once."""
        return None if self.needs_context else Predictions.none(self.setup.num_experts)

    def gate_step(self, num_rows: int) -> GateStep | None:
        """How compiled code answers `on_gate` for all layers of this iteration; None to be called in Python.

        Called when the gate of the first layer has fired. A policy with `lookahead`, and one that predicts for several devices,
        is called in Python instead.

        Args:
            num_rows: number of rows B.
        """
        return None

    def foresee(self, demanded: Sequence[np.ndarray]) -> None:
        """Receive what every layer of the next iteration will demand, before it starts; called only if `needs_future` is set.

        Args:
            demanded: [L] arrays of ascending ids.
        """
        return None

    def read_bytes(self, num_rows: np.ndarray, hidden_size: int) -> np.ndarray:
        """Bytes that the policy's own work reads in iterations of the given sizes, [n, 1 + L]: at their start and at each gate.
        A simulated executor derives the duration of that work from them.

        Args:
            num_rows: [n] rows of each iteration. hidden_size: h of the simulated model, the width of embeddings in a store.
        """
        return np.zeros((len(num_rows), 1 + self.setup.num_layers))

    def read_bytes_in_block(self, block: Block, hidden_size: int) -> np.ndarray:
        """Like `read_bytes`, for the iterations of the block that `predict_block` has just answered. A policy that learns within
        a block returns what it would have read at each iteration."""
        return self.read_bytes(block.num_rows, hidden_size)

    def _at_gates(self, num_bytes: np.ndarray, distance: int) -> np.ndarray:
        """`read_bytes` for work at every gate that predicts a layer `distance` ahead; num_bytes: [n] bytes at each gate."""
        read = np.zeros((len(num_bytes), 1 + self.setup.num_layers))
        read[:, 1 : 1 + self.setup.num_layers - distance] = num_bytes[:, None]
        return read

    def wanted(self, layer: int, probs: np.ndarray, scores: np.ndarray | None = None) -> Prediction:
        """The prediction for `layer` from one distribution per row; its experts are the union of what the rows select.

        Args:
            probs: [B, J]. scores: [B] similarity of each row to the source of its distribution; a poor match selects more than K
                experts (Eqs. 6-8). None selects K per row.
        """
        selected = select_experts(probs, thresholds_of(scores, len(probs)), self.setup.top_k)
        is_one_row = len(probs) == 1  # in decode; reducing over rows would cost more than the search
        probabilities = probs[0] if is_one_row else probs.max(axis=0)
        experts = np.flatnonzero(selected[0] if is_one_row else selected.any(axis=0))
        return Prediction(layer, probabilities.astype(np.float32, copy=False), experts)

    def wanted_in_block(
        self, block: Block, moments: np.ndarray, layer: int, probs: np.ndarray, scores: np.ndarray | None = None
    ) -> Predictions:
        """Like `wanted`, for every iteration of a block at once.

        Args:
            moments: [n] when each iteration's prediction is made. probs: [B, J] of all rows. scores: [B].
        """
        selected = select_experts(probs, thresholds_of(scores, len(probs)), self.setup.top_k)
        probabilities = np.maximum.reduceat(probs, block.starts[:-1]).astype(np.float32, copy=False)
        chosen = np.logical_or.reduceat(selected, block.starts[:-1])
        return Predictions(moments, np.full(len(moments), layer), probabilities, chosen)


def checked(answer: Sequence[Prediction], setup: PolicySetup) -> list[Prediction]:
    """Validate a policy's answer and copy it, because compiled code indexes with it without bounds checks.

    Raises:
        FinemoeError: it predicts a layer twice or a layer that the model lacks, or has impossible values.
    """
    if len(answer) > 1:
        layers = [prediction.layer for prediction in answer]
        if len(set(layers)) < len(layers):
            raise FinemoeError(f"a policy predicted layers {layers} in one answer; it may predict each layer only once")
    return [_checked(prediction, setup.num_layers, setup.num_experts) for prediction in answer]


def _checked(prediction: Prediction, num_layers: int, num_experts: int) -> Prediction:
    layer, experts = prediction.layer, np.asarray(prediction.experts)
    probabilities = np.array(prediction.probabilities, dtype=np.float32)
    if (
        type(layer) is int
        and 0 <= layer < num_layers
        and probabilities.ndim == experts.ndim == 1
        and experts.dtype == np.int64
        and are_sound(probabilities, experts, num_experts)
    ):
        return Prediction(layer, probabilities, experts.copy())  # every answer of finemoe's own policies returns here
    if not (is_whole(layer) and 0 <= layer < num_layers):
        raise FinemoeError(f"a policy predicted layer {layer!r}; the model's layers are 0..{num_layers - 1}")
    if probabilities.shape != (num_experts,) or not are_within(probabilities, 0, _GREATEST):
        raise FinemoeError(
            f"a policy predicted {probabilities!r:.80} for layer {layer}; needs {num_experts} finite probabilities, none below 0"
        )
    is_list = experts.ndim == 1 and (not len(experts) or experts.dtype.kind in "iu")
    if not is_list or not are_within(experts, 0, num_experts - 1):
        raise FinemoeError(f"a policy requested experts {experts!r:.80} of layer {layer}; their ids are 0..{num_experts - 1}")
    return Prediction(int(layer), probabilities, experts.astype(np.int64))


@njit(cache=True)
def are_sound(probabilities, experts, num_experts):  # type: ignore[no-untyped-def]
    """Whether these are J valid probabilities, as far as can be checked cheaply, and valid expert ids."""
    return (
        len(probabilities) == num_experts and are_within(probabilities, 0, _GREATEST) and are_within(experts, 0, num_experts - 1)
    )


def history_trace(setup: PolicySetup, system: str) -> RoutingTrace | None:
    """The history from which a policy learns before the run; None if there is none.

    Raises:
        FinemoeError: it is not a trace, or its model has other sizes.
    """
    history = setup.history
    if history is None:
        return None
    if not isinstance(history, RoutingTrace):
        raise FinemoeError(f"{system} learns from a RoutingTrace; history is of type {type(history).__name__}")
    found, expected = (history.num_layers, history.num_experts), (setup.num_layers, setup.num_experts)
    if found != expected:
        raise FinemoeError(
            f"the history holds routing of {found[0]} x {found[1]} experts, the model has {expected[0]} x {expected[1]}"
        )
    return history
