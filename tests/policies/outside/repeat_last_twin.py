"""Repeat-last once more, for the naive replay."""

import numpy as np

from tests.simulation.naive import Nothing, union_of_top


class RepeatLast(Nothing):
    def at_gate(self, request, rows, layer):
        target = layer + self.distance
        if target >= self.trace.num_layers or rows[0] == 0:
            return []
        before = np.zeros((1, self.trace.num_experts), dtype=np.float32)
        before[0, self.trace.expert_ids[rows[0] - 1, target]] = 1 / self.trace.top_k
        wanted, row = union_of_top(before, [self.trace.top_k])
        return [(target, wanted, row)]
