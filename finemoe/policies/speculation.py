"""Speculation: a later layer's router applied to the current residual stream (Mixtral-Offloading, ProMoE's prototype)."""

import numpy as np

from finemoe.policies.base import Policy
from finemoe.policies.block import Block
from finemoe.policies.predictions import Predictions


def router_bytes(num_experts: int, hidden_size: int) -> float:
    """Bytes that one application of a router reads, for any number of rows: its weights, at 16 bits."""
    return 2.0 * num_experts * hidden_size


def speculate_block(policy: Policy, block: Block, stride: int) -> Predictions:
    """Predictions for a whole block of a policy that prefetches what the router `stride` layers ahead selects at every gate."""
    ahead = block.lookahead(stride)
    parts = [
        policy.wanted_in_block(block, block.at_first_gate + 2 * layer, layer + stride, np.ascontiguousarray(ahead[:, layer]))
        for layer in range(policy.setup.num_layers - stride)
    ]
    return Predictions.of(parts, policy.setup.num_experts)
