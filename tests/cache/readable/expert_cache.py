"""The expert cache of one device: which experts are resident, and who goes when another must come (section 4.5).

Accounting only: a slot is a number. Access is event-atomic (DESIGN 4): the union of a layer's demanded experts is accessed at
once, hits are judged before anything is admitted, and none of the set can be a victim while the layer runs.
"""

from dataclasses import dataclass

import numpy as np

from tests.cache.readable.base import EvictionRule

ABSENT, LOADING, RESIDENT = 0, 1, 2


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
        slot: index of the slot; evicted: flat id of the expert that left it, or -1.
        wasted: the evicted expert had been prefetched and was never demanded.
    """

    slot: int
    evicted: int
    wasted: bool


class ExpertCache:
    """Slots of one device, filled by demand and prefetch, emptied by an eviction rule.

    Args:
        rule: the eviction rule, which fixes L and J.
        num_slots: capacity in experts, at least 1. ahead: how many layers ahead of the running one a prefetch must be.
        least_gain: by how much a prefetch must be worth more than who goes for it, or than nothing; None: by nothing.
    """

    def __init__(self, rule: EvictionRule, num_slots: int, ahead: int = 1, least_gain: float | None = None) -> None:
        shape = rule.frequency.shape
        self.rule, self.num_slots, self.ahead, self.least_gain = rule, num_slots, ahead, least_gain
        self.state = np.zeros(shape, dtype=np.uint8)
        self.slot_of = np.full(shape, -1, dtype=np.int64)
        self._undemanded = np.zeros(shape, dtype=np.bool_)  # prefetched, and not demanded since
        self._awaiting = np.zeros(shape, dtype=np.bool_)  # prefetched for a layer that has not come yet
        self._running = np.zeros(shape, dtype=np.bool_)  # demanded by the running layer and still needed
        self._pending: dict[tuple[int, int], float] = {}
        self._layer = -1
        self.num_admitted = self.num_evicted = self.num_resident = 0
        self.reset()

    def reset(self) -> None:
        """Forget what the slots hold: every expert is absent, and what was held counts as evicted. The rule keeps its memory."""
        self.num_evicted = self.num_admitted
        self.num_resident = 0
        self.state[:] = ABSENT
        self.slot_of[:] = -1
        for flags in (self._undemanded, self._awaiting, self._running):
            flags[:] = False
        self._free_slots = list(range(self.num_slots))[::-1]
        self._pending.clear()

    @property
    def num_held(self) -> int:
        """Experts that occupy a slot, resident or loading."""
        return self.num_slots - len(self._free_slots)

    @property
    def num_unused(self) -> np.ndarray:
        """Prefetched experts that hold a slot and were not demanded so far, by layer, [L]."""
        counts: np.ndarray = self._undemanded.sum(axis=1)
        return counts

    def start_iteration(self) -> None:
        """A new iteration: no layer runs, and no prefetch of an earlier one is awaited any more."""
        self._layer = -1
        self._awaiting[:] = False
        self._running[:] = False
        self._pending.clear()

    def demand(self, layer: int, experts: np.ndarray) -> Access:
        """Access a layer's demanded set at once.

        Args:
            experts: [n] distinct ids, ascending.
        """
        self._layer = layer
        self._running[:] = False
        self._running[layer, experts] = True
        self._awaiting[layer] = False
        self._undemanded[layer, experts] = False
        state = self.state[layer, experts]
        self.rule.visit(layer, experts)
        return Access(layer, experts[state == RESIDENT], experts[state == LOADING], experts[state == ABSENT])

    def use(self, layer: int, experts: list[int]) -> None:
        """Experts demanded while everything is resident: no rule has anything to learn, but they are unused no longer."""
        self._undemanded[layer, experts] = False

    def release(self, layer: int, experts: np.ndarray) -> None:
        """Experts of the running set that have been used in this call and may now be victims."""
        self._running[layer, experts] = False

    def need(self, layer: int, expert: int) -> None:
        """An expert of the running set has come back into a slot: it stays until the layer is done."""
        self._running[layer, expert] = True

    def admit(self, layer: int, expert: int, prefetched: bool) -> Admission | None:
        """Give an absent expert a slot, evicting if none is free; its state becomes LOADING.

        Returns:
            None where every slot holds an expert that must stay, or the prefetch would gain too little.
        """
        assert self.state[layer, expert] == ABSENT
        if prefetched and self.least_gain is not None and not self._gain(layer, expert) > self.least_gain:
            return None
        evicted, wasted = -1, False
        if not self._free_slots:
            evicted = self._choose_victim()
            if evicted < 0:
                return None
            wasted = self._evict(evicted)
        slot = self._free_slots.pop()
        self.num_admitted += 1
        self.state[layer, expert] = LOADING
        self.slot_of[layer, expert] = slot
        self._undemanded[layer, expert] = prefetched
        self._awaiting[layer, expert] = prefetched and layer != self._layer
        return Admission(slot, evicted, wasted)

    def _gain(self, layer: int, expert: int) -> float:
        """What an absent expert is worth more than who would go for it, or than a free slot."""
        victim = -1 if self._free_slots else self._choose_victim()
        flats = np.array([layer * self.state.shape[1] + expert, victim])
        worth = self.rule.worth(flats)
        return float(worth[0] - (worth[1] if victim >= 0 else 0.0))

    def expect(self, layer: int, expert: int) -> None:
        """A prefetch finds this expert here or on its way: as one just prefetched, it is awaited until its layer comes."""
        self._awaiting[layer, expert] = True

    def hear(self, layer: int, probabilities: np.ndarray) -> None:
        """A layer's distribution is predicted, [J]."""
        self.rule.hear(layer, probabilities)

    def post(self, layer: int, experts: np.ndarray) -> None:
        """Prefetches of a layer that has not come: absent experts wait, others are awaited."""
        if layer < self._layer + self.ahead:
            return
        for expert in experts.tolist():
            if self.state[layer, expert] == ABSENT:
                self._pending[layer, expert] = float(self.rule.expected[layer, expert])
            elif layer > self._layer:
                self.expect(layer, expert)

    def take_most_urgent(self) -> tuple[int, int] | None:
        """What waits with the highest p / (l - l_now), and is still wanted."""
        is_open = lambda key: key[0] >= self._layer + self.ahead and self.state[key] == ABSENT  # noqa: E731
        self._pending = {key: p for key, p in self._pending.items() if is_open(key)}
        if not self._pending:
            return None
        urgent = max(self._pending, key=lambda key: self._pending[key] / max(key[0] - self._layer, 1))
        del self._pending[urgent]
        return urgent

    def complete(self, layer: int, expert: int) -> None:
        """The expert's load has ended."""
        assert self.state[layer, expert] == LOADING
        self.state[layer, expert] = RESIDENT
        self.num_resident += 1

    def evictable(self) -> np.ndarray:
        """Flat ids of the experts that may be victims now; awaited prefetches only when nothing else is left."""
        movable = (self.state == RESIDENT) & ~self._running
        candidates = np.flatnonzero(movable & ~self._awaiting)
        return candidates if len(candidates) else np.flatnonzero(movable)

    def _choose_victim(self) -> int:
        candidates = self.evictable()
        return self.rule.victim(candidates, self._layer) if len(candidates) else -1

    def _evict(self, flat: int) -> bool:
        layer, expert = divmod(flat, self.state.shape[1])
        self.num_evicted += 1
        self.num_resident -= 1
        self.state[layer, expert] = ABSENT
        self._free_slots.append(int(self.slot_of[layer, expert]))
        self.slot_of[layer, expert] = -1
        self._awaiting[layer, expert] = False
        wasted = bool(self._undemanded[layer, expert])
        self._undemanded[layer, expert] = False
        return wasted
