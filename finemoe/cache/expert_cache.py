"""The expert cache of one device, live: which experts are resident, who goes when another must come, and which prefetch is next.

Every decision is one of the compiled transitions that a replay runs (`cache.kernels`, `cache.prefetch_queue`), so that both
decide alike.
"""

import functools
from dataclasses import dataclass

import numpy as np

from finemoe.cache import kernels
from finemoe.cache.prefetch_queue import NOTHING, forget_prefetches, post_prefetches, take_most_urgent
from finemoe.cache.rules.base import EvictionRule
from finemoe.cache.state import (
    ABSENT,
    ADMITTED,
    EVICTED,
    HELD,
    IS_WEIGHED,
    LAYER,
    LOADING,
    NUM_PENDING,
    NUM_RESIDENT,
    RESIDENT,
    CacheState,
    empty_state,
)
from finemoe.errors import EngineError, FinemoeError


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


class ExpertCache:
    """Slots of one device, filled by demand and prefetch, emptied by an eviction rule.

    Args:
        rule: who goes. num_layers, num_experts: L, J. num_slots: capacity in experts, at least 1.
    Attributes:
        state: [L, J] uint8 ABSENT, LOADING or RESIDENT. slot_of: [L, J] the slot of each expert, or -1.
        expected: [L, J] float32 the last prediction heard of each layer, 1/J before there is any.
        running: [L, J] what the running layer demands and still needs. Others only read these.
    Raises:
        FinemoeError: there is no slot.
    """

    def __init__(self, rule: EvictionRule, num_layers: int, num_experts: int, num_slots: int) -> None:
        if num_slots < 1:
            raise FinemoeError("the expert memory holds less than one expert; give every device at least one expert's bytes")
        _compile(rule)
        self.rule, self.num_slots, self._num_experts = rule, num_slots, num_experts
        self._arrays = empty_state(num_layers, num_experts, num_slots, rule.own(num_experts))
        self._counts = self._arrays.counts
        self._found = np.zeros(num_experts, dtype=np.uint8)
        shape = num_layers, num_experts
        self.state, self.slot_of = self._arrays.presence.reshape(shape), self._arrays.slot_of.reshape(shape)
        self.expected, self.running = self._arrays.stats.expected.reshape(shape), self._arrays.running.reshape(shape)
        self._undemanded = self._arrays.undemanded.reshape(shape)

    @property
    def arrays(self) -> CacheState:
        """What compiled transitions change."""
        return self._arrays

    def raise_rule_failure(self) -> None:
        """Raise what the eviction rule raises of the cache as it is, after it has failed in compiled code.

        Raises:
            EngineError: the rule has failed.
        """
        stats, nobody = self._arrays.stats, np.empty(0, dtype=np.int64)
        try:
            self.rule.weigh(stats, self._arrays.held, self._arrays.worth.copy())
            self.rule.visit(stats._replace(own=stats.own.copy()), max(self.layer, 0), nobody)
        except Exception as error:
            raise EngineError(f"the eviction rule failed: {type(error).__name__}: {error}; the engine cannot go on") from error
        raise EngineError("the eviction rule failed; the engine cannot go on")

    @property
    def layer(self) -> int:
        """The layer that runs, -1 before the first of an iteration."""
        return int(self._counts[LAYER])

    @property
    def num_held(self) -> int:
        """Experts that occupy a slot, resident or loading."""
        return int(self._counts[HELD])

    @property
    def num_resident(self) -> int:
        """Experts whose load has ended."""
        return int(self._counts[NUM_RESIDENT])

    @property
    def num_admitted(self) -> int:
        """Slots given so far."""
        return int(self._counts[ADMITTED])

    @property
    def num_evicted(self) -> int:
        """Experts that lost their slot so far."""
        return int(self._counts[EVICTED])

    @property
    def num_pending(self) -> int:
        """Prefetches that wait, stale ones among them."""
        return int(self._counts[NUM_PENDING])

    @property
    def num_unused(self) -> np.ndarray:
        """Prefetched experts that hold a slot and were not demanded so far, by layer, [L]."""
        counts: np.ndarray = self._undemanded.sum(axis=1)
        return counts

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
        self.expected[layer] = probabilities
        self._counts[IS_WEIGHED] = False

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


@functools.cache
def _compile(rule: EvictionRule) -> None:
    """Run everything once, so that no token waits for the compiler."""
    own, one, found = rule.own(2), np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.uint8)
    cache: CacheState = empty_state(2, 2, 1, own)
    kernels.start_iteration(cache)
    rule.visit(cache.stats, 0, one)
    kernels.access(cache, 0, one, found)
    kernels.give_slot(cache, 0, False)
    kernels.settle(cache.presence, cache.counts, 0)
    kernels.release(cache, 0, one)
    post_prefetches(cache, one + 2)
    take_most_urgent(cache)
    rule.weigh(cache.stats, cache.held, cache.worth)
    kernels.can_evict(cache)
    forget_prefetches(cache)
    kernels.reset(cache)
