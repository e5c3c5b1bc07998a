"""Speculation: the router of a later layer applied to the residual stream as it is (Mixtral-Offloading, ProMoE's prototype)."""

import numpy as np

from finemoe.policies.base import Policy
from finemoe.policies.block import Block
from finemoe.policies.predictions import Predictions


def router_bytes(num_experts: int, hidden_size: int) -> float:
    """What one application of a router reads, to however many rows at once: its weights, at 16 bits."""
    return 2.0 * num_experts * hidden_size


def speculate_block(policy: Policy, block: Block, stride: int) -> Predictions:
    """The predictions of a policy that wants what the router `stride` layers ahead says at every gate, for a whole block."""
    ahead = block.lookahead(stride)
    parts = [
        policy.wanted_in_block(block, block.at_first_gate + 2 * layer, layer + stride, np.ascontiguousarray(ahead[:, layer]))
        for layer in range(policy.setup.num_layers - stride)
    ]
    return Predictions.of(parts, policy.setup.num_experts)
