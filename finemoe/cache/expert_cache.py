"""The expert cache of one device, live: which experts are resident, who goes when another must come, and which prefetch is next.

What changes it are the compiled transitions that a replay runs (`cache.kernels`, `cache.prefetch_queue`), so that both decide
alike; here Python looks at what they left.
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
        rule: who goes. num_layers, num_experts: L, J. num_slots: capacity in experts, at least 1. least_gain: see
            policies.base.Policy.
    Attributes:
        state: [L, J] uint8 ABSENT, LOADING or RESIDENT. slot_of: [L, J] the slot of each expert, or -1.
        expected: [L, J] float32 the last prediction heard of each layer, 1/J before there is any.
        running: [L, J] what the running layer demands and still needs. Others only read these.
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
        self._undemanded = self._arrays.undemanded.reshape(shape)

    @property
    def arrays(self) -> CacheState:
        """What compiled transitions change."""
        return self._arrays

    def rule_failure(self) -> EngineError:
        """What to raise when the eviction rule has failed in compiled code: what it raises of the cache as it is now."""
        stats, nobody = self._arrays.stats, np.empty(0, dtype=np.int64)
        try:
            self.rule.weigh(stats, self._arrays.held, self._arrays.worth.copy())
            self.rule.visit(stats, max(self.layer, 0), nobody)
        except Exception as error:
            failure = EngineError(f"the eviction rule failed: {type(error).__name__}: {error}; the engine cannot go on, close it")
            failure.__cause__ = error
            return failure
        return EngineError("the eviction rule failed; the engine cannot go on, close it")

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
