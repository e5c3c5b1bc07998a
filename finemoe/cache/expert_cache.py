"""The live expert cache of one device: which experts are resident, which to evict for another, and which prefetch is next.

Its state is changed by the same compiled transitions that a replay runs (`cache.kernels`, `cache.prefetch_queue`), so both decide
alike; the Python code here reads the result.
"""

import numpy as np

from finemoe.cache.rules.base import EvictionRule
from finemoe.cache.state import (
    ADMITTED,
    EVICTED,
    HELD,
    LAYER,
    NUM_PENDING,
    NUM_RESIDENT,
    CacheState,
    empty_state,
)
from finemoe.errors import EngineError, FinemoeError


class ExpertCache:
    """Slots of one device, filled by demand and prefetch, emptied by an eviction rule.

    Args:
        rule: the eviction rule. num_layers, num_experts: L, J. num_slots: capacity in experts, at least 1. least_gain: see
            policies.base.Policy.
    Attributes:
        state: [L, J] uint8 ABSENT, LOADING or RESIDENT. slot_of: [L, J] the slot of each expert, or -1.
        expected: [L, J] float32 the last prediction received for each layer, 1/J before there is any.
        running: [L, J] what the running layer demands and still needs. All of these are read-only for callers.
        is_local: [L, J] which experts streaming may load (see CacheState); set by the owner of the cache.
    Raises:
        FinemoeError: there is no slot.
    """

    def __init__(
        self, rule: EvictionRule, num_layers: int, num_experts: int, num_slots: int, least_gain: float | None = None
    ) -> None:
        if num_slots < 1:
            raise FinemoeError("the expert memory holds less than one expert; give every device at least one expert's bytes")
        self.rule, self.num_slots, self._num_experts = rule, num_slots, num_experts
        self._arrays = empty_state(num_layers, num_experts, num_slots, rule.own(num_experts), least_gain=least_gain)
        self._counts = self._arrays.counts
        shape = num_layers, num_experts
        self.state, self.slot_of = self._arrays.presence.reshape(shape), self._arrays.slot_of.reshape(shape)
        self.expected, self.running = self._arrays.stats.expected.reshape(shape), self._arrays.running.reshape(shape)
        self._undemanded, self.is_local = self._arrays.undemanded.reshape(shape), self._arrays.is_local.reshape(shape)

    @property
    def arrays(self) -> CacheState:
        """The state that compiled transitions change."""
        return self._arrays

    def rule_failure(self) -> EngineError:
        """The error to raise when the eviction rule failed in compiled code: what it raises for the cache's current state."""
        stats, nobody = self._arrays.stats, np.empty(0, dtype=np.int64)
        try:
            self.rule.weigh(stats, self._arrays.held, self._arrays.worth.copy())
            self.rule.visit(stats, max(self.layer, 0), nobody)
        except Exception as error:
            failure = EngineError(f"the eviction rule failed: {type(error).__name__}: {error}; close the engine, it cannot go on")
            failure.__cause__ = error
            return failure
        return EngineError("the eviction rule failed; close the engine, it cannot go on")

    @property
    def layer(self) -> int:
        """The running layer, -1 before the first of an iteration."""
        return int(self._counts[LAYER])

    @property
    def num_held(self) -> int:
        """Experts that occupy a slot, resident or loading."""
        return int(self._counts[HELD])

    @property
    def num_resident(self) -> int:
        """Experts whose load has finished."""
        return int(self._counts[NUM_RESIDENT])

    @property
    def num_admitted(self) -> int:
        """Number of slots given out so far."""
        return int(self._counts[ADMITTED])

    @property
    def num_evicted(self) -> int:
        """Number of experts evicted so far."""
        return int(self._counts[EVICTED])

    @property
    def num_pending(self) -> int:
        """Prefetches in the queue, including stale ones."""
        return int(self._counts[NUM_PENDING])

    @property
    def num_unused(self) -> np.ndarray:
        """Number of prefetched experts that hold a slot and have not been demanded, by layer, [L]."""
        counts: np.ndarray = self._undemanded.sum(axis=1)
        return counts
