"""Asks a policy what it predicts for a block of recorded routing.

Predictions never depend on what is resident, so that a policy can be heard first and the cache be run afterwards; and where what
a policy knows is frozen, it can be heard for the whole block at once.
"""

import numpy as np

from finemoe.maps.search import TrajectorySearch, guide
from finemoe.maps.selection import select_experts, threshold_of
from finemoe.policies.base import Context, Policy
from finemoe.policies.finemoe import FineMoE
from finemoe.simulation.events import Iterations
from finemoe.simulation.plan import Predictions
from finemoe.traces import RoutingTrace


def predict(policy: Policy, trace: RoutingTrace, block: Iterations) -> Predictions:
    """The policy's predictions for every iteration of a block."""
    if not policy.needs_context:
        return Predictions.none(trace.num_experts)
    if isinstance(policy, FineMoE) and policy.is_frozen:
        return _searched_at_once(policy, trace, block)
    return _step_by_step(policy, trace, block)


def _step_by_step(policy: Policy, trace: RoutingTrace, block: Iterations) -> Predictions:
    """In the order of DESIGN 2: start, every gate, end, iteration after iteration."""
    maps, experts = trace.maps(block.rows), trace.expert_ids[block.rows].astype(np.int64)
    embeddings = trace.embeddings(block.rows) if trace.embedding_table is not None else None
    parts = []
    for number, (begin, end) in enumerate(zip(block.starts[:-1].tolist(), block.starts[1:].tolist(), strict=True)):
        first_event = number * trace.num_layers
        context = Context(None if embeddings is None else embeddings[begin:end], bool(block.is_prefill[number]))
        parts.append(Predictions.answered(2 * first_event, policy.start_iteration(context), policy.expected))
        for layer in range(trace.num_layers):
            wanted = policy.on_gate(layer, np.ascontiguousarray(maps[begin:end, layer]), experts[begin:end, layer])
            parts.append(Predictions.answered(2 * (first_event + layer) + 1, wanted, policy.expected))
        policy.end_iteration()
    return Predictions.of(parts, trace.num_experts)


def _searched_at_once(policy: FineMoE, trace: RoutingTrace, block: Iterations) -> Predictions:
    """FineMoE over a frozen store: all rows of the block search together, layer by layer, and iterations take their rows'
    union."""
    store, setup = policy.store, policy.setup
    if not len(store):
        return Predictions.none(trace.num_experts)
    maps = trace.maps(block.rows)
    firsts = np.arange(len(block)) * trace.num_layers  # first event of each iteration
    parts = []
    if trace.embedding_table is not None and store.embedding_dim:
        records, scores = store.nearest_embeddings(trace.embeddings(block.rows))
        for layer in range(setup.prefetch_distance):
            parts.append(_union(policy, block, records, scores, layer, 2 * firsts))
    search = TrajectorySearch(store, len(maps))
    for layer in range(trace.num_layers - setup.prefetch_distance):
        search.observe(layer, np.ascontiguousarray(maps[:, layer]))
        records, scores = search.nearest()
        parts.append(_union(policy, block, records, scores, layer + setup.prefetch_distance, 2 * (firsts + layer) + 1))
    return Predictions.of(parts, trace.num_experts)


def _union(
    policy: FineMoE, block: Iterations, records: np.ndarray, scores: np.ndarray, layer: int, moments: np.ndarray
) -> Predictions:
    probs = guide(policy.store, records, layer)
    selected = select_experts(probs, threshold_of(scores), policy.setup.top_k)
    begins = block.starts[:-1]
    layers = np.full(len(block), layer)
    return Predictions(moments, layers, np.maximum.reduceat(probs, begins), np.logical_or.reduceat(selected, begins))
