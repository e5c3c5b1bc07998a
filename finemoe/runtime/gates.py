"""A layer's gate output as a distribution over all experts that ranks as the router selects (DESIGN 5, "Traps")."""

from typing import Any, NamedTuple

import numpy as np
import torch

from finemoe.compiling import njit
from finemoe.maps import expert_map, ranking
from finemoe.maps.ranking import as_half, pairwise_sum, rank_as_selected, record_rows
from finemoe.runtime.snapshot import HostBuffers, Snapshot
from finemoe.stale_kernels import forget_stale_kernels

forget_stale_kernels(__file__, ranking.__file__)
_LEAST_KNOWN = np.float32(2.0**-14)  # lower bound of a selected expert's weight, to mark it as selected
AS_IT_IS, POWERS, SPARSE = range(3)  # forms of a gate's output


class Said(NamedTuple):
    """A gate's output for some rows, one compiled step before it becomes a distribution; the next stage may take that step
    itself.

    Attributes:
        values: float32. The distribution (AS_IT_IS) or its unnormalised terms (POWERS), [B, width]; or the weights of the
            selected experts (SPARSE), [B, K], if nothing else is known.
        selected: [B, K] int64.
        form: AS_IT_IS, POWERS or SPARSE.
    """

    values: np.ndarray
    selected: np.ndarray
    form: int

    def distribution(self, width: int, layer: int) -> np.ndarray:
        """The distribution, [B, width] float32 with the precision of a trace.

        Args:
            width: number of columns.
            layer: index of the MoE layer, for the error message.
        Raises:
            EngineError: the router emitted NaN.
        """
        if self.form == AS_IT_IS:
            return self.values
        probs = np.empty((len(self.values), width), dtype=np.float32)
        if not fill_distribution(self.values, self.selected, self.form, probs):
            raise expert_map.no_distribution(probs, layer)
        return probs


class GateOutput:
    """The output of one layer's gate, before it is needed as a distribution.

    Args:
        layer: index of the MoE layer.
        num_experts: J.
        width: number of columns of the distribution (J of the widest layer).
        router_output: the router's first output, [rows, J or more] logits or probabilities, or None if no router was seen.
        selected, weights: [rows, K] the selected experts and their weights, used if the router's output is not usable.
        buffers: see Snapshot.
    """

    def __init__(
        self,
        layer: int,
        num_experts: int,
        width: int,
        router_output: torch.Tensor | None,
        selected: np.ndarray,
        weights: torch.Tensor,
        buffers: HostBuffers | None = None,
    ) -> None:
        self.layer, self.selected = layer, selected
        self._num_experts, self._width = num_experts, width
        self._is_whole = router_output is not None and router_output.shape[-1] >= num_experts
        self._values = Snapshot(router_output if router_output is not None and self._is_whole else weights, buffers)

    def keep(self) -> None:
        """See `Snapshot.keep`."""
        self._values.keep()

    @property
    def is_whole(self) -> bool:
        """Whether the router scored every expert; otherwise only the selected ones are known."""
        return self._is_whole

    def said(self, rows: np.ndarray | None) -> Said:
        """The gate's output for some of its rows, [B] indices, or for all if None.

        Raises:
            EngineError: the router emitted NaN. Some NaNs are only found when the output becomes a distribution.
        """
        values, selected = self._values.rows(rows), self.selected if rows is None else self.selected[rows]
        selected = np.ascontiguousarray(selected, dtype=np.int64)
        powers = powers_of(values) if self._is_whole else None
        if not self._is_whole:
            said = Said(values, selected, SPARSE)
        elif powers is not None and powers.shape[1] == self._num_experts:
            said = Said(powers, selected, POWERS)
        else:
            probs = values if powers is None else _shares(powers)
            said = Said(_recorded(probs, selected, self._num_experts, self.layer), selected, AS_IT_IS)
        missing = self._width - self._num_experts
        if missing:
            probs = said.distribution(self._num_experts, self.layer)
            said = Said(np.pad(probs, ((0, 0), (0, missing))), selected, AS_IT_IS)
        return said

    def distribution(self, rows: np.ndarray | None) -> np.ndarray:
        """The gate's distribution over all experts, [B, width] float32 with the precision of a trace.

        Args:
            rows: indices of the gate's rows; None for all.
        Raises:
            EngineError: the router emitted NaN.
        """
        return self.said(rows).distribution(self._width, self.layer)


def scores_of(router_output: Any, top_k_index: torch.Tensor) -> torch.Tensor | None:
    """The gate's logits or probabilities in a router's output, or None unless that router selected these experts.

    Args:
        router_output: the output of the router module, by convention (scores [T, J], weights [T, K], index [T, K], ...).
        top_k_index: [T, K], the ids that the experts were called with.
    """
    if isinstance(router_output, tuple) and any(item is top_k_index for item in router_output):
        return router_output[0] if isinstance(router_output[0], torch.Tensor) else None
    return None


def as_recorded(values: np.ndarray) -> np.ndarray:
    """Float32 values with the precision of a trace (half), so that a live run and its replay make the same decisions."""
    return values.astype(np.float16).astype(np.float32)


def distribution_of(scores: np.ndarray, selected: np.ndarray, num_experts: int, layer: int) -> np.ndarray:
    """The gate's softmax [B, J], float32 with the precision of a trace, adjusted to rank as the router selects.

    Args:
        scores: [B, J or more] logits or probabilities; columns from J on represent no expert (a token may skip the layer).
        selected: [B, K] ids of the selected experts.
        num_experts: J.
        layer: index of the MoE layer, for the error message.
    Raises:
        EngineError: the router emitted NaN.
    """
    selected, powers = np.ascontiguousarray(selected, dtype=np.int64), powers_of(scores)
    if powers is None:
        return _recorded(scores, selected, num_experts, layer)
    if powers.shape[1] == num_experts and record_rows(powers, selected):
        return powers
    return _recorded(_shares(powers), selected, num_experts, layer)


def _shares(powers: np.ndarray) -> np.ndarray:
    """The last step of a softmax, [B, J]."""
    shares: np.ndarray = powers / np.add.reduce(powers, axis=-1, keepdims=True)
    return shares


def _recorded(probs: np.ndarray, selected: np.ndarray, num_experts: int, layer: int) -> np.ndarray:
    """Probabilities [B, J or more] as a trace would hold them, [B, J]; see `distribution_of`."""
    expert_map.require_distribution(probs, layer)
    if probs.shape[1] > num_experts:
        probs = _normalised(probs[:, :num_experts])
    return rank_as_selected(as_recorded(probs), selected)


def powers_of(scores: np.ndarray) -> np.ndarray | None:
    """A softmax [B, J] without its last step, which is the first step of recording; None if the scores are probabilities."""
    lowered = np.empty_like(scores)
    if less_the_greatest(scores, lowered) and np.allclose(scores.sum(axis=-1), 1.0, atol=1e-3):
        return None
    powers: np.ndarray = np.exp(lowered, out=lowered)  # a compiled exp rounds differently (findings/numba_exp_other_bits.sh)
    return powers


@njit(cache=True, nogil=True)
def less_the_greatest(scores, lowered):  # type: ignore[no-untyped-def]
    """Fill `lowered` with each row of `scores` [B, J] minus its maximum; returns whether no score is negative or NaN."""
    is_none_below = True
    for row in range(scores.shape[0]):
        greatest = scores[row, 0]
        for score in scores[row]:
            is_none_below &= score >= 0
            greatest = max(greatest, score)
        for place in range(scores.shape[1]):
            lowered[row, place] = scores[row, place] - greatest
    return is_none_below


@njit(cache=True, nogil=True)
def fill_distribution(values, selected, form, probs):  # type: ignore[no-untyped-def]
    """Fill probs [B, width] float32 with a gate's output, see Said; returns whether all values are numbers."""
    if form == SPARSE:
        probs[:] = 0
        return sparse_rows(values, selected, _LEAST_KNOWN, probs)
    probs[:] = values
    return form == AS_IT_IS or record_rows(probs, selected)


@njit(cache=True, nogil=True)
def sparse_rows(weights, selected, least, probs):  # type: ignore[no-untyped-def]
    """Fill probs [B, J], zeros on entry, with the selected experts' weights [B, K], at least `least` each, scaled to sum to 1 and
    rounded to half precision; uniform over all experts if no weight is known. Returns whether all values are numbers."""
    for row in range(probs.shape[0]):
        for place in range(selected.shape[1]):
            weight = abs(weights[row, place])
            if 0 <= selected[row, place] < probs.shape[1]:
                probs[row, selected[row, place]] = weight if weight > least or weight != weight else least
        total = pairwise_sum(probs[row])
        if total != total:
            return False
        for expert in range(probs.shape[1]):
            probs[row, expert] = as_half(probs[row, expert] / total if total > 0 else np.float32(1.0 / probs.shape[1]))
    return True


def warm_up() -> None:
    """Compile what converts a gate's output to a distribution, or load it from the cache on disk."""
    selected = np.zeros((1, 1), dtype=np.int64)
    distribution_of(np.zeros((1, 2), dtype=np.float32), selected, 2, 0)
    Said(np.ones((1, 1), dtype=np.float32), selected, SPARSE).distribution(2, 0)


def _normalised(values: np.ndarray) -> np.ndarray:
    """Rows scaled to sum to 1; a row of zeros becomes uniform."""
    totals = values.sum(axis=-1, keepdims=True)
    normalised: np.ndarray = np.where(totals == 0, 1.0 / values.shape[1], values / np.where(totals == 0, 1.0, totals))
    return normalised.astype(np.float32)
