"""Tokens that a step of `generate` verifies, and what the experts cost that only rejected ones selected."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from finemoe.cache.state import ABSENT, LOADING, RESIDENT


class LayerDemand(NamedTuple):
    """One layer of the step: the experts that each row selected, [T, K]; the demanded experts, and the state of each when the
    gate fired."""

    layer: int
    selected: np.ndarray
    experts: Sequence[int]
    found: Sequence[int]


class Rejected(NamedTuple):
    """Experts of one layer that only rejected drafts selected, by their state when the gate fired."""

    layer: int
    hits: int
    late: int
    misses: int


class Drafts:
    """A step that verifies drafts of one sequence. Which are accepted is known when the cache is fed again: it then holds no
    others.

    Args:
        request: number of its request.
        past_tokens: tokens that the cache held before.
        num_tokens: tokens that the step was fed.
        num_drafts: how many of these, at the end, are drafts.
    Attributes:
        is_counted: whether this was counted as a decode step with drafts, rather than as a prompt with drafts after it.
        num_resets: how often the counters had been reset when the step ran.
    """

    def __init__(self, request: int, past_tokens: int, num_tokens: int, num_drafts: int) -> None:
        self.request, self.num_drafts = request, num_drafts
        self.is_counted, self.num_resets = False, 0
        self._past_tokens, self._num_tokens = past_tokens, num_tokens
        self._demands: list[LayerDemand] = []

    def note(self, layer: int, selected: np.ndarray, experts: Sequence[int], found: Sequence[int]) -> None:
        """Note what one layer demanded; see `LayerDemand`."""
        if len(selected) == self._num_tokens:
            self._demands.append(LayerDemand(layer, selected.copy(), experts, found))

    def note_all_resident(self, layer: int, selected: np.ndarray, experts: np.ndarray) -> None:
        """The same of a layer whose experts stay in their slots for good; `experts` may name one several times."""
        distinct = np.unique(experts).tolist()
        self.note(layer, selected, distinct, [RESIDENT] * len(distinct))

    def num_rejected(self, past_tokens: int) -> int | None:
        """How many were rejected, given the tokens that the cache holds now; None if it was emptied or cut otherwise."""
        num_rejected = self._past_tokens + self._num_tokens - past_tokens
        return num_rejected if 0 <= num_rejected <= self.num_drafts else None

    def rejected(self, num_rejected: int) -> list[Rejected]:
        """The demand of the last `num_rejected` drafts alone."""
        return [_rejected(demand, self._num_tokens - num_rejected) for demand in self._demands if num_rejected]


def _rejected(demand: LayerDemand, num_kept: int) -> Rejected:
    kept = set(demand.selected[:num_kept].ravel().tolist())
    found = [state for expert, state in zip(demand.experts, demand.found, strict=True) if expert not in kept]
    return Rejected(demand.layer, *(found.count(state) for state in (RESIDENT, LOADING, ABSENT)))
