"""Asks a policy what it predicts for a block of recorded routing.

Predictions never depend on what is resident, so that a policy can be heard first and caches of any size be run afterwards; and
where what a policy knows is frozen, it can be heard for the whole block at once. What its own work reads is asked when it works,
for a store that fills takes longer to search from iteration to iteration.
"""

import numpy as np

from finemoe.maps.search import TrajectorySearch, guide
from finemoe.maps.selection import select_experts
from finemoe.policies.base import Context, Policy
from finemoe.policies.finemoe import FineMoE
from finemoe.policies.promoe import ProMoE
from finemoe.simulation.events import Iterations
from finemoe.simulation.plan import Notes, Predictions
from finemoe.traces import RoutingTrace


def predict(
    policy: Policy, trace: RoutingTrace, block: Iterations, begins: np.ndarray, demanded: np.ndarray, hidden_size: int = 0
) -> tuple[Predictions, np.ndarray]:
    """The policy's predictions for every iteration of a block, and the bytes it reads for them.

    Args:
        begins, demanded: what the block's events demand (`demanded_sets`). hidden_size: of the model meant, see
            `Policy.read_bytes`.
    Returns:
        predictions; read_bytes [n, 1 + L] at every iteration's start and gates.
    """
    parts, read_bytes = [], policy.read_bytes(np.diff(block.starts), hidden_size)
    if type(policy) is FineMoE and policy.is_frozen:
        parts.append(_searched_at_once(policy, trace, block))
    elif type(policy) is ProMoE and policy.is_frozen:
        parts.append(_predicted_at_once(policy, trace, block))
    elif policy.needs_context:
        predictions, read_bytes = _step_by_step(policy, trace, block, begins, demanded, hidden_size)
        parts.append(predictions)
    if policy.loads_whole_layers:
        parts.append(_whole_layers(trace, block))
    return Predictions.of(parts, trace.num_experts), read_bytes


def _whole_layers(trace: RoutingTrace, block: Iterations) -> Predictions:
    """Every layer brings in all of its experts as soon as its gate has spoken."""
    events = np.arange(len(block) * trace.num_layers)
    shape = (len(events), trace.num_experts)
    rows = np.full(shape, 1.0 / trace.num_experts, dtype=np.float32)
    return Predictions(2 * events + 1, events % trace.num_layers, rows, np.ones(shape, dtype=np.bool_))


def _step_by_step(
    policy: Policy, trace: RoutingTrace, block: Iterations, begins: np.ndarray, demanded: np.ndarray, hidden_size: int
) -> tuple[Predictions, np.ndarray]:
    """In the order of DESIGN 2: start, every gate, end, iteration after iteration."""
    num_layers = trace.num_layers
    maps, experts = trace.maps(block.rows), trace.expert_ids[block.rows].astype(np.int64)
    embeddings = trace.embeddings(block.rows) if trace.embedding_table is not None else None
    ahead = np.stack([trace.lookahead(block.rows, stride) for stride in policy.lookahead]) if policy.lookahead else None
    sets = np.split(demanded, begins[1:-1]) if policy.needs_future else []
    notes, read_bytes = Notes(trace.num_experts), []
    for number, (begin, end) in enumerate(zip(block.starts[:-1].tolist(), block.starts[1:].tolist(), strict=True)):
        first_event = number * num_layers
        if policy.needs_future:
            policy.foresee(sets[first_event : first_event + num_layers])
        rows = None if embeddings is None else embeddings[begin:end]
        context = Context(rows, bool(block.is_prefill[number]), bool(block.starts_request[number]), end - begin)
        notes.add(2 * first_event, policy.start_iteration(context))
        read_bytes.append(policy.read_bytes(np.array([end - begin]), hidden_size))
        for layer in range(num_layers):
            probs = np.ascontiguousarray(maps[begin:end, layer])
            lookahead = None if ahead is None else ahead[:, begin:end, layer]
            notes.add(2 * (first_event + layer) + 1, policy.on_gate(layer, probs, experts[begin:end, layer], lookahead))
        policy.end_iteration()
    return notes.predictions(), np.concatenate(read_bytes)


def _searched_at_once(policy: FineMoE, trace: RoutingTrace, block: Iterations) -> Predictions:
    """FineMoE over a frozen store: all rows of the block search together, layer by layer, and iterations take their rows'
    union."""
    store, distance = policy.store, policy.setup.prefetch_distance
    if not len(store):
        return Predictions.none(trace.num_experts)
    maps = trace.maps(block.rows)
    firsts = np.arange(len(block)) * trace.num_layers  # first event of each iteration
    parts = []
    if trace.embedding_table is not None and policy.searches_embeddings:
        records, scores = store.nearest_embeddings(trace.embeddings(block.rows))
        parts = [_union(policy, block, records, scores, layer, 2 * firsts) for layer in range(distance)]
    search = TrajectorySearch(store, len(maps))
    for layer in range(trace.num_layers - distance):
        search.observe(layer, np.ascontiguousarray(maps[:, layer]))
        records, scores = search.nearest()
        parts.append(_union(policy, block, records, scores, layer + distance, 2 * (firsts + layer) + 1))
    return Predictions.of(parts, trace.num_experts)


def _predicted_at_once(policy: ProMoE, trace: RoutingTrace, block: Iterations) -> Predictions:
    """ProMoE with trained predictors over all rows of the block together, layer by layer."""
    gates = np.ascontiguousarray(trace.maps(block.rows).transpose(1, 0, 2))
    firsts = np.arange(len(block)) * trace.num_layers  # first event of each iteration
    distance, parts = policy.setup.prefetch_distance, []
    for layer in range(trace.num_layers - distance):
        probs = policy.predictors.predict(layer + distance, list(gates))
        selected = select_experts(probs, np.zeros(len(probs)), policy.setup.top_k)
        parts.append(_united(block, probs, selected, layer + distance, 2 * (firsts + layer) + 1))
    return Predictions.of(parts, trace.num_experts)


def _union(
    policy: FineMoE, block: Iterations, records: np.ndarray, scores: np.ndarray, layer: int, moments: np.ndarray
) -> Predictions:
    probs = guide(policy.store, records, layer)
    selected = select_experts(probs, policy.thresholds(scores), policy.setup.top_k)
    return _united(block, probs, selected, layer, moments)


def _united(block: Iterations, probs: np.ndarray, selected: np.ndarray, layer: int, moments: np.ndarray) -> Predictions:
    """An iteration's prediction of a layer, from those of its rows [n, J]."""
    begins = block.starts[:-1]
    layers = np.full(len(block), layer)
    return Predictions(moments, layers, np.maximum.reduceat(probs, begins), np.logical_or.reduceat(selected, begins))
