"""Expert parallelism (section 5): experts are spread round-robin over devices, each with its own cache, slots, link and worker.

The home device computes the layer. A weight in another device's slot is copied over, device to device, when its expert runs.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from finemoe.policies.base import Prediction
from finemoe.policies.gate_step import GateStep
from finemoe.runtime import transitions
from finemoe.runtime.expert_layout import copied_in_phase
from finemoe.runtime.gates import Said
from finemoe.runtime.lease import Lease
from finemoe.runtime.memory import ExpertMemory


class DeviceMemories:
    """The expert memories of all devices, used as one.

    Args:
        memories: one per device.
        owners: [L, J] index of each expert's device.
        counts: number of experts of every layer.
        home: the device on which layers compute.
    """

    def __init__(self, memories: Sequence[ExpertMemory], owners: np.ndarray, counts: Sequence[int], home: torch.device) -> None:
        self.memories, self.home = list(memories), home
        self._owners, self.counts = owners, list(counts)
        self._num_experts = sum(self.counts)
        self._is_local = all(memory.pool.device == home for memory in self.memories)
        self._resident: list[list[dict[str, torch.Tensor]]] = []

    @property
    def is_all_resident(self) -> bool:
        """Whether every expert is on the home device for good: nothing will be loaded or evicted any more."""
        num_absent = self._num_experts
        for memory in self.memories:  # cheap: this runs in every layer
            num_absent -= memory.cache.num_resident
        return self._is_local and not num_absent

    def resident_weights(self, layer: int) -> list[dict[str, torch.Tensor]]:
        """The weights of all experts of a layer, by expert and parameter name; only while everything is resident."""
        if not self._resident:
            self._resident = [[self._weights(layer, e) for e in range(count)] for layer, count in enumerate(self.counts)]
        return self._resident[layer]

    def start_iteration(self, iteration: int, is_streamed: bool) -> None:
        """See `ExpertMemory.start_iteration`."""
        for memory in self.memories:
            memory.start_iteration(iteration, is_streamed)

    def post(self, iteration: int | None, predictions: Sequence[Prediction]) -> None:
        """Pass the predictions of the iteration with this number to every device; each loads the experts that it owns. See
        `ExpertMemory.post`."""
        if len(self.memories) == 1:
            self.memories[0].post(iteration, predictions)
            return
        for index, memory in enumerate(self.memories):
            memory.post(iteration, [self._part(prediction, index) for prediction in predictions])

    @property
    def speak(self) -> Callable[[int | None, GateStep, int, Said], None] | None:
        """`ExpertMemory.speak` of the only device; None if there are several, because a step's predictions are not split over
        devices."""
        return self.memories[0].speak if len(self.memories) == 1 else None

    def note_run(self, layer: int) -> None:
        """A layer has run, so prefetching for it is worthwhile."""
        for memory in self.memories:
            memory.board.has_run[layer] = True

    def preload(self, is_counted: bool = True) -> None:
        """Fill every device's free slots, the experts of highest expected probability first, ties spread over the layers.

        Args:
            is_counted: as in `ExpertMemory.preload`.
        """
        experts = [(layer, expert) for layer, count in enumerate(self.counts) for expert in range(count)]
        for index, memory in enumerate(self.memories):
            owned = [key for key in experts if self._owners[key] == index]
            memory.preload(_most_expected_first(owned, memory.expected), is_counted)

    def use(self, layer: int, selected: np.ndarray) -> int:
        """Access a layer's set while everything is resident, as in `demand`; returns the number of experts in the set."""
        count = 0
        for memory in self.memories:
            count = transitions.use(memory.board.places, layer, selected)
        return count

    def complete_layer(self, layer: int) -> None:
        """Load all of a running layer's experts, as far as there are slots."""
        for memory, part in zip(self.memories, self.split(layer, np.arange(self.counts[layer])), strict=True):
            memory.complete_layer(layer, part)

    def demand(self, layer: int, experts: np.ndarray, aside: np.ndarray) -> "Lease | Leases":
        """Access a layer's demanded set on all devices at once; experts, aside: as in `ExpertMemory.demand`."""
        if self._is_local and len(self.memories) == 1:
            return Lease(self.memories[0], layer, experts, aside)
        return Leases(self, layer, experts, aside)

    def check(self) -> None:
        """Raise a worker's failure in the caller."""
        for memory in self.memories:
            memory.check()

    def reset(self) -> None:
        """Empty every cache after a forward that failed."""
        self._resident = []
        for memory in self.memories:
            memory.reset()

    def start(self) -> None:
        """Start every worker."""
        for memory in self.memories:
            memory.start()

    def abandon(self) -> None:
        """Stop every worker at process exit; see `ExpertMemory.abandon`."""
        for memory in self.memories:
            memory.abandon()

    def close(self) -> None:
        """Stop every worker and free its slots."""
        self._resident = []
        for memory in self.memories:
            memory.close()

    def owner(self, layer: int, expert: int) -> int:
        """Index of the device that owns an expert."""
        return int(self._owners[layer, expert])

    def split(self, layer: int, experts: np.ndarray) -> list[np.ndarray]:
        """The experts of a layer by device."""
        if len(self.memories) == 1:
            return [experts]
        experts = experts[(experts >= 0) & (experts < self.counts[layer])]  # the others are foreign
        owners = self._owners[layer, experts]
        return [experts[owners == index] for index in range(len(self.memories))]

    def _part(self, prediction: Prediction, index: int) -> Prediction:
        mine = self._owners[prediction.layer, prediction.experts] == index
        return prediction.with_experts(prediction.experts[mine])

    def _weights(self, layer: int, expert: int) -> dict[str, torch.Tensor]:
        memory = self.memories[self.owner(layer, expert)]
        weights = memory.pool.weights(layer, int(memory.cache.slot_of[layer, expert]), expert)
        return to_home(weights, memory.pool.device, self.home)


class Leases:
    """A layer's demanded experts on all devices while the layer runs."""

    def __init__(self, memories: DeviceMemories, layer: int, experts: np.ndarray, aside: np.ndarray) -> None:
        self._memories, self._layer = memories, layer
        parts = zip(memories.memories, memories.split(layer, experts), memories.split(layer, aside), strict=True)
        self._leases: list[Lease] = [memory.demand(layer, part, other) for memory, part, other in parts]
        self._brought: tuple[int, dict[str, torch.Tensor]] = (-1, {})  # the expert last copied to the home device

    @property
    def experts(self) -> list[int]:
        """The demanded experts, ascending."""
        return sorted(expert for lease in self._leases for expert in lease.experts)

    @property
    def found(self) -> list[int]:
        """See Lease."""
        states = {expert: state for lease in self._leases for expert, state in zip(lease.experts, lease.found, strict=True)}
        return [states[expert] for expert in self.experts]

    @property
    def num_hits(self) -> int:
        """See Lease."""
        return sum(lease.num_hits for lease in self._leases)

    @property
    def num_late(self) -> int:
        """See Lease."""
        return sum(lease.num_late for lease in self._leases)

    @property
    def num_misses(self) -> int:
        """See Lease."""
        return sum(lease.num_misses for lease in self._leases)

    @property
    def num_recalled(self) -> int:
        """See Lease."""
        board = self._memories.memories[0].board  # every device gets all predictions, and the first one demands first
        return int(transitions.count_recalled(board.places, self._layer, np.array(self.experts, dtype=np.int64)))

    def as_they_come(self, experts: Sequence[int]) -> Iterable[int]:
        """In ascending order: each device's set may exceed its slots."""
        return experts

    def weights(self, expert: int) -> dict[str, torch.Tensor]:
        """The expert's weights by parameter name, on the home device, complete and safe to read."""
        if self._brought[0] != expert:  # a model's own forward asks for each parameter separately
            index = self._memories.owner(self._layer, expert)
            device = self._memories.memories[index].pool.device
            self._brought = expert, to_home(self._leases[index].weights(expert), device, self._memories.home)
        return self._brought[1]

    def stacked(self) -> None:
        """None: no single view spans several devices."""
        return None

    def end(self) -> None:
        """The layer's compute has been issued."""
        for lease in self._leases:
            lease.end()


def _most_expected_first(experts: list[tuple[int, int]], expected: np.ndarray) -> list[tuple[int, int]]:
    return sorted(experts, key=lambda key: (-float(expected[key]), key[1], key[0]))


def to_home(weights: dict[str, torch.Tensor], device: torch.device, home: torch.device) -> dict[str, torch.Tensor]:
    """The weights on the home device; the same tensors if they are there already."""
    if device == home:
        return weights
    return {name: copied_in_phase(weight, home) for name, weight in weights.items()}
