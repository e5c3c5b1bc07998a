"""What a layer's gate said, as a distribution over all experts, whatever the router hands out (DESIGN 5, "Traps")."""

import numpy as np
import torch

from finemoe.maps import expert_map
from finemoe.runtime.snapshot import HostBuffers, Snapshot


class GateOutput:
    """What one layer's gate said, before anyone needs it as a distribution.

    Args:
        layer: index of the MoE layer; num_experts: J; width: columns of the distribution (the widest layer's J).
        router_output: the router's first output, [rows, J] logits or probabilities, or None where no router was seen.
        selected, weights: [rows, K] the selected experts and their weights, which stand in where the router's output is no use.
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
        self._layer, self._num_experts, self._width, self._selected = layer, num_experts, width, selected
        self._is_whole = router_output is not None and router_output.shape[-1] == num_experts
        self._values = Snapshot(router_output if router_output is not None and self._is_whole else weights, buffers)

    def distribution(self, rows: np.ndarray | None) -> np.ndarray:
        """The gate's softmax over all experts, [B, width] float32; only the K known entries where the rest is not to be had.

        Raises:
            EngineError: the router emitted NaN.
        """
        values = self._values.rows(rows)
        if self._is_whole:
            probs = distribution_of(values, self._layer)
        else:
            probs = sparse_distribution(values, self._selected if rows is None else self._selected[rows], self._num_experts)
            expert_map.require_distribution(probs, self._layer)
        probs = as_recorded(probs)
        missing = self._width - probs.shape[1]
        return np.pad(probs, ((0, 0), (0, missing))) if missing else probs


def as_recorded(values: np.ndarray) -> np.ndarray:
    """Float32 values with the precision of a trace (half), so that a live run and its replay decide alike."""
    return values.astype(np.float16).astype(np.float32)


def distribution_of(gate_output: np.ndarray, layer: int) -> np.ndarray:
    """The gate's softmax [B, J], whether the router hands out logits or probabilities.

    Raises:
        EngineError: the router emitted NaN.
    """
    is_distribution = (gate_output >= 0).all() and np.allclose(gate_output.sum(axis=-1), 1.0, atol=1e-3)
    probs = gate_output if is_distribution else expert_map.from_logits(gate_output)
    expert_map.require_distribution(probs, layer)
    return probs


def sparse_distribution(weights: np.ndarray, selected: np.ndarray, num_experts: int) -> np.ndarray:
    """A distribution that knows only the selected experts, [B, J] float32 (as in top-k traces, DESIGN 4)."""
    known = np.abs(weights.astype(np.float32)) * (selected < num_experts)
    probs = np.zeros((len(weights), num_experts + 1), dtype=np.float32)
    np.put_along_axis(probs, np.minimum(selected, num_experts), known, axis=-1)
    probs = probs[:, :num_experts]
    totals = probs.sum(axis=-1, keepdims=True)
    return np.where(totals == 0, 1.0 / num_experts, probs / np.where(totals == 0, 1.0, totals)).astype(np.float32)
