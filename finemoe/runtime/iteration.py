"""One forward of an attached model as its engine sees it."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from finemoe.errors import EngineError
from finemoe.models.layers import MoELayer
from finemoe.runtime.gates import GateOutput
from finemoe.runtime.phases import Forward, Phase

_NOTHING_KNOWN = Forward(Phase.UNKNOWN, 0, False)


@dataclass(frozen=True)
class Gate:
    """What a layer's gate said, not yet published; selected: [rows, K] expert ids."""

    layer: int
    output: GateOutput
    selected: np.ndarray


class Iteration:
    """One forward, made anew for each.

    Args:
        number: from 1 on; 0 is before the first. forward: what is known of it. num_rows: its token rows, padding included.
    Attributes:
        layer: the MoE layer that runs or ran last; -1 before the first.
        rows: [n] indices of the token rows that count, or None where all do.
        begin_s: when it began (time.perf_counter).
        is_open: whether more of it may come; is_published: whether the policy sees it.
        router_output: what the last router returned; gate: what it said, until that is published.
        router_weights: [rows, K] by layer, for `require_numbers`.
    """

    def __init__(self, number: int, forward: Forward = _NOTHING_KNOWN, num_rows: int = 0) -> None:
        self.number, self.forward, self.num_rows = number, forward, num_rows
        self.rows: np.ndarray | None = None if forward.rows is None else forward.rows.cpu().numpy()
        self.layer = -1
        self.begin_s = time.perf_counter()
        self.is_open, self.is_published = number > 0, False
        self.router_output: object = None
        self.gate: Gate | None = None
        self.router_weights: dict[int, torch.Tensor] = {}

    @property
    def has_rows(self) -> bool:
        """Whether any row counts."""
        return self.num_rows > 0 if self.rows is None else len(self.rows) > 0

    def chosen(self, layer: MoELayer, selected: np.ndarray) -> tuple[set[int], set[int]]:
        """The experts that rows which count selected, and those that only padding did; selected: [rows, K]."""
        everyones = set(selected.ravel().tolist()) - {layer.num_experts}  # expert parallelism marks foreign experts with J
        if self.rows is None or len(selected) != self.num_rows:
            return everyones, set()
        chosen = everyones.intersection(selected[self.rows].ravel().tolist())
        return chosen, everyones - chosen

    def take_router_output(self) -> object:
        """What the last router returned, once."""
        output, self.router_output = self.router_output, None
        return output

    def require_numbers(self) -> None:
        """A router's NaN spoils all that follows, so that looking at the last layer finds it; then the first such layer is named.

        Raises:
            EngineError: a router emitted NaN.
        """
        if not self.router_weights or not self._has_nan(max(self.router_weights)):
            return
        first = next(layer for layer in sorted(self.router_weights) if self._has_nan(layer))
        raise EngineError(f"the router of MoE layer {first} emitted NaN; the model's weights or its input are not finite")

    def _has_nan(self, layer: int) -> bool:
        weights = self.router_weights[layer]
        if self.rows is not None and len(weights) > self.rows.max(initial=0):
            weights = weights[torch.from_numpy(self.rows).to(weights.device)]
        return bool(weights.isnan().any())
