"""The live cache step by step: the product's compiled transitions, one call each, for tests that compare and count."""

from dataclasses import dataclass

import numpy as np

from finemoe.cache import kernels
from finemoe.cache.expert_cache import ExpertCache
from finemoe.cache.prefetch_queue import NOTHING, forget_prefetches, post_prefetches, take_most_urgent
from finemoe.cache.rules.base import EvictionRule
from finemoe.cache.state import ABSENT, HELD, LOADING, NUM_PENDING, RESIDENT


@dataclass(frozen=True)
class Access:
    """One layer's demanded experts, judged when its gate fired; arrays of expert ids in ascending order."""

    layer: int
    hits: np.ndarray
    late: np.ndarray
    misses: np.ndarray


@dataclass(frozen=True)
class Admission:
    """A slot given to an expert.

    Attributes:
        slot: index of the slot; evicted: flat id (layer·J + expert) of the expert that left it, or -1.
        wasted: the evicted expert had been prefetched and was never demanded.
    """

    slot: int
    evicted: int
    wasted: bool


class LiveCache(ExpertCache):
    """An ExpertCache with its transitions."""

    def __init__(self, rule: EvictionRule, num_layers: int, num_experts: int, num_slots: int) -> None:
        super().__init__(rule, num_layers, num_experts, num_slots)
        self._found = np.zeros(num_experts, dtype=np.uint8)

    def reset(self) -> None:
        """Forget what the slots hold and what waits: every expert is absent, and what was held counts as evicted. The rule keeps
        its memory."""
        kernels.reset(self._arrays)

    def start_iteration(self) -> None:
        """A new iteration: no layer runs, and no prefetch of an earlier one waits or is awaited any more."""
        kernels.start_iteration(self._arrays)

    def demand(self, layer: int, experts: np.ndarray) -> Access:
        """Access a layer's demanded set at once; the layer runs from now on.

        Args:
            experts: [n] distinct ids, ascending.
        """
        wanted, found = np.array(experts, dtype=np.int64), self._found[: len(experts)]
        if self.rule.learns:
            self.rule.visit(self._arrays.stats, layer, wanted)
        kernels.access(self._arrays, layer, wanted, found)
        return Access(layer, wanted[found == RESIDENT], wanted[found == LOADING], wanted[found == ABSENT])

    def use(self, layer: int, experts: list[int]) -> None:
        """Experts demanded while everything is resident: no rule has anything to learn, but they are unused no longer."""
        self._undemanded[layer, experts] = False

    def release(self, layer: int, experts: np.ndarray) -> None:
        """Experts of the running set that have been used in this call and may now be victims."""
        kernels.release(self._arrays, layer, np.array(experts, dtype=np.int64))

    def admit(self, layer: int, expert: int, prefetched: bool) -> Admission | None:
        """Give an absent expert a slot, evicting if none is free; its state becomes LOADING.

        Returns:
            None where every slot holds an expert that must stay.
        """
        cache, flat = self._arrays, layer * self._num_experts + expert
        assert cache.presence[flat] == ABSENT
        if self._counts[HELD] == self.num_slots:
            self.rule.weigh(cache.stats, cache.held, cache.worth)
        slot, evicted, is_wasted = kernels.give_slot(cache, flat, prefetched)
        return Admission(int(slot), int(evicted), bool(is_wasted)) if slot >= 0 else None

    def complete(self, layer: int, expert: int) -> None:
        """The expert's load has ended."""
        assert self.state[layer, expert] == LOADING
        kernels.settle(self._arrays.presence, self._counts, layer * self._num_experts + expert)

    def hear(self, layer: int, probabilities: np.ndarray) -> None:
        """A layer's distribution is predicted, [J]."""
        kernels.hear(self._arrays, layer, probabilities)

    def post(self, layer: int, experts: np.ndarray) -> None:
        """Prefetches of a layer, [n] ids, after `hear`: those of absent experts wait, unless their layer has come; who is here or
        on the way is awaited until then."""
        if len(experts):
            post_prefetches(self._arrays, layer * self._num_experts + np.array(experts, dtype=np.int64))

    def forget_prefetches(self) -> None:
        """Let none wait any longer."""
        forget_prefetches(self._arrays)

    def take_most_urgent(self) -> tuple[int, int] | None:
        """(layer, expert) of the waiting prefetch with the highest priority, which then waits no longer; None if there is none
        left that is still wanted."""
        flat = take_most_urgent(self._arrays) if self._counts[NUM_PENDING] else NOTHING
        return None if flat == NOTHING else divmod(int(flat), self._num_experts)

    @property
    def can_evict(self) -> bool:
        """Whether any expert may be a victim now."""
        return bool(kernels.can_evict(self._arrays))
