"""The contract between a policy and an executor (DESIGN 2).

An executor calls `start_iteration`, then `on_gate` for every layer, then `end_iteration`; a policy answers the first two with
predictions, which the executor keeps, loads from and hands to its eviction rule. (`predict_block` and `gate_step` give the same
answers faster.) A policy never touches a weight, a clock or a thread.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
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
    """What a policy is told about its model and its run.

    Attributes:
        num_layers, num_experts, top_k: L, J, K; embedding_dim: h (0 where no embeddings exist).
        prefetch_distance: d in layers; store_capacity: C in maps.
        history: a RoutingTrace or ExpertMapStore of other requests, or None to learn online.
        model: identity of the model. seed: for policies that draw.
    Raises:
        FinemoeError: d is not in 1..L, C is no positive whole number, or the history is of another model.
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

    def __post_init__(self) -> None:
        if not (is_whole(self.prefetch_distance) and 1 <= self.prefetch_distance <= self.num_layers):
            raise FinemoeError(
                f"prefetch_distance is {self.prefetch_distance!r}, must lie in 1..{self.num_layers} (the number of layers)"
            )
        if not (is_whole(self.store_capacity) and self.store_capacity >= 1):
            raise FinemoeError(f"store_capacity is {self.store_capacity!r}, must be a whole number of maps, at least 1")
        for name in ("prefetch_distance", "store_capacity"):
            object.__setattr__(self, name, int(getattr(self, name)))  # what is saved with a store is plain
        known = getattr(self.history, "model", "")
        if self.model and known and _family(known) != _family(self.model):
            raise FinemoeError(f"the history is of {known!r}, not of {self.model!r}; record one with this model")


def _family(identity: str) -> str:
    """A model's identity without the digest of its weights, which changes with their type."""
    return identity.rpartition("-")[0] or identity


@dataclass(frozen=True)
class Context:
    """What is known when an iteration starts.

    Attributes:
        embeddings: [B, h] float32 semantic embeddings, or None; a row is a sequence in decode, a token in prefill.
        is_prefill: whether this is a prefill; None where it is prefill and decode in one (continuous batching), or not known.
        starts_request: whether it is the first iteration of a request (or of a batch of them). num_rows: B, also where there are
            no embeddings.
    """

    embeddings: np.ndarray | None
    is_prefill: bool | None
    starts_request: bool
    num_rows: int = 1


class Prediction(NamedTuple):
    """What a policy expects of one layer.

    Attributes:
        layer: the layer predicted.
        probabilities: [J] float32, the distribution predicted for it (maximum over rows). Eviction may read it, and its recall is
            measured when the layer's gate fires.
        experts: [n] ascending ids to be loaded ahead.
    """

    layer: int
    probabilities: np.ndarray
    experts: np.ndarray

    def with_experts(self, experts: np.ndarray) -> "Prediction":
        """The same prediction, of which only these experts are to be loaded ahead."""
        return Prediction(self.layer, self.probabilities, experts)


class Policy(ABC):
    """One system of the paper.

    Attributes:
        needs_context: whether the executor must hand over embeddings and gate outputs at all.
        lookahead: strides s for which it needs the routers applied ahead (the router of layer l + s on the residual stream after
            layer l), which `on_gate` then gets.
        is_synchronous: whether inference waits for what is loaded ahead (section 3).
        loads_whole_layers: whether a layer that runs brings in all of its experts, activated or not; such a policy predicts none.
        holds_everything: whether every expert stays on the device, whatever the expert memory.
        least_gain: by how much what it loads ahead must be worth more, as its eviction rule weighs, than whoever goes for it;
            None to load all that it asks for.
        saves: whether it keeps what it learned, and is to be told when the run is over.
        needs_future: whether it can only run where the future is known (replay).
        default_eviction: name of the system's own eviction rule.
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
        """A class that does anything in its own way, itself or by a mixin, is asked step by step, and in Python, unless it says
        for itself what it predicts of a block, or how its gates are answered in compiled code."""
        super().__init_subclass__(**options)
        if cls.loads_whole_layers and cls.needs_context:
            raise FinemoeError(f"{cls.__name__} loads whole layers, so that it predicts none: set needs_context = False")
        for shortcut in ("predict_block", "gate_step"):
            for kind in cls.__mro__:
                if shortcut in vars(kind):
                    break
                if any(callable(value) for name, value in vars(kind).items() if not name.startswith("__")):
                    setattr(cls, shortcut, getattr(Policy, shortcut))
                    break

    @abstractmethod
    def start_iteration(self, context: Context) -> list[Prediction]:
        """Before layer 1, when no gate has spoken yet."""

    @abstractmethod
    def on_gate(
        self, layer: int, probs: np.ndarray, experts: np.ndarray, lookahead: np.ndarray | None = None
    ) -> list[Prediction]:
        """The gate of `layer` has spoken.

        Args:
            probs: [B, J] its distribution, which ranks as the router selects. experts: [B, K] what the model selected.
            lookahead: [strides, B, J] the routers applied ahead, zeros past the last layer; None if not to be had.
        """

    @abstractmethod
    def end_iteration(self) -> None:
        """The last layer has run."""

    def save(self) -> None:
        """The run is over, and no call comes after this one, which comes only to who `saves`."""
        return None

    def predict_block(self, block: Block) -> Predictions | None:
        """What `start_iteration` and `on_gate` would answer in all iterations of a block, bit for bit; None, to be asked step by
        step. A replay asks this first, for whoever knows beforehand all that it will know answers faster at once."""
        return None if self.needs_context else Predictions.none(self.setup.num_experts)

    def gate_step(self, num_rows: int) -> GateStep | None:
        """How `on_gate` of all layers of this iteration is answered in compiled code; None, to be asked in Python.

        Args:
            num_rows: B. Asked instead of `on_gate` when the first layer's gate has spoken; who looks ahead, and who predicts for
                several devices, is asked in Python.
        """
        return None

    def foresee(self, demanded: Sequence[np.ndarray]) -> None:
        """What every layer of the next iteration will demand, [L] arrays of ascending ids; told before it starts to whoever
        `needs_future`, and of no use to others."""
        return None

    def read_bytes(self, num_rows: np.ndarray, hidden_size: int) -> np.ndarray:
        """Bytes that the policy's own work would read now in iterations of so many rows, [n, 1 + L]: at their start and at each
        gate. A simulated executor takes the work's time from them.

        Args:
            num_rows: [n]. hidden_size: h of the model meant, whose embeddings a store would hold.
        """
        return np.zeros((len(num_rows), 1 + self.setup.num_layers))

    def read_bytes_in_block(self, block: Block, hidden_size: int) -> np.ndarray:
        """As `read_bytes`, for the iterations of the block that `predict_block` has just answered for. Who has learned between
        them says what it would have read at each."""
        return self.read_bytes(block.num_rows, hidden_size)

    def _at_gates(self, num_bytes: np.ndarray, distance: int) -> np.ndarray:
        """`read_bytes` of work at every gate that predicts a layer `distance` ahead; num_bytes: [n] at each."""
        read = np.zeros((len(num_bytes), 1 + self.setup.num_layers))
        read[:, 1 : 1 + self.setup.num_layers - distance] = num_bytes[:, None]
        return read

    def wanted(self, layer: int, probs: np.ndarray, scores: np.ndarray | None = None) -> Prediction:
        """The prediction of `layer` from one distribution per row, with the union of what they select.

        Args:
            probs: [B, J]. scores: [B] how similar each row was to what its distribution is from, so that a poor match asks for
                more than K experts (Eqs. 6-8); None for K a row.
        """
        selected = select_experts(probs, thresholds_of(scores, len(probs)), self.setup.top_k)
        is_one_row = len(probs) == 1  # as in decode, where reducing costs more than searching
        probabilities = probs[0] if is_one_row else probs.max(axis=0)
        experts = np.flatnonzero(selected[0] if is_one_row else selected.any(axis=0))
        return Prediction(layer, probabilities.astype(np.float32, copy=False), experts)

    def wanted_in_block(
        self, block: Block, moments: np.ndarray, layer: int, probs: np.ndarray, scores: np.ndarray | None = None
    ) -> Predictions:
        """As `wanted`, for every iteration of a block at once.

        Args:
            moments: [n] when each iteration's prediction is made. probs: [B, J] of all rows. scores: [B].
        """
        selected = select_experts(probs, thresholds_of(scores, len(probs)), self.setup.top_k)
        probabilities = np.maximum.reduceat(probs, block.starts[:-1]).astype(np.float32, copy=False)
        chosen = np.logical_or.reduceat(selected, block.starts[:-1])
        return Predictions(moments, np.full(len(moments), layer), probabilities, chosen)


def checked(answer: Sequence[Prediction], setup: PolicySetup) -> list[Prediction]:
    """What a policy answered, in arrays of the executor's own: compiled code indexes by it without looking.

    Raises:
        FinemoeError: it predicts a layer twice or one that the model lacks, or says something impossible of it.
    """
    if len(answer) > 1:
        layers = [prediction.layer for prediction in answer]
        if len(set(layers)) < len(layers):
            raise FinemoeError(f"a policy predicted layers {layers} in one answer; it may predict each only once")
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
        return Prediction(layer, probabilities, experts.copy())  # all that answers of this project's policies come to
    if not (is_whole(layer) and 0 <= layer < num_layers):
        raise FinemoeError(f"a policy predicted layer {layer!r}; the model's layers are 0..{num_layers - 1}")
    if probabilities.shape != (num_experts,) or not are_within(probabilities, 0, _GREATEST):
        raise FinemoeError(
            f"a policy predicted {probabilities!r:.80} of layer {layer}; takes {num_experts} finite probabilities, none below 0"
        )
    is_list = experts.ndim == 1 and (not len(experts) or experts.dtype.kind in "iu")
    if not is_list or not are_within(experts, 0, num_experts - 1):
        raise FinemoeError(f"a policy asked for experts {experts!r:.80} of layer {layer}; their ids are 0..{num_experts - 1}")
    return Prediction(int(layer), probabilities, experts.astype(np.int64))


@njit(cache=True)
def are_sound(probabilities, experts, num_experts):  # type: ignore[no-untyped-def]
    """Whether these are J probabilities, as far as one can tell, and ids of experts."""
    return (
        len(probabilities) == num_experts and are_within(probabilities, 0, _GREATEST) and are_within(experts, 0, num_experts - 1)
    )


def history_trace(setup: PolicySetup, system: str) -> RoutingTrace | None:
    """The history from which a system takes what it knows beforehand.

    Raises:
        FinemoeError: it is no trace, or of another model's sizes.
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
