"""Hears a policy on a block of recorded routing: what it predicts, and what its own work reads.

Predictions never depend on what is resident, so that a policy can be heard first and caches of any size be run afterwards; and
where what it knows is frozen, it may answer for the whole block at once (`Policy.predict_block`). What its work reads is asked
while it works, for a store that fills takes longer to search from iteration to iteration.
"""

from collections.abc import Iterator

import numpy as np

from finemoe.policies.base import Context, Policy, Prediction
from finemoe.policies.block import Block
from finemoe.policies.predictions import Predictions
from finemoe.simulation.events import Iterations
from finemoe.traces import RoutingTrace


def hear(
    policy: Policy, trace: RoutingTrace, iterations: Iterations, begins: np.ndarray, demanded: np.ndarray, hidden_size: int = 0
) -> tuple[Predictions, np.ndarray]:
    """The policy's predictions for every iteration of a block, and the bytes it reads for them.

    Args:
        begins, demanded: what the block's events demand (`demanded_sets`). hidden_size: of the model meant, see
            `Policy.read_bytes`.
    Returns:
        predictions; read_bytes [n, 1 + L] at every iteration's start and gates.
    """
    block = Block(trace, iterations.rows, iterations.starts, iterations.is_prefill, iterations.starts_request)
    sets = np.split(demanded, begins[1:-1]) if policy.needs_future else []
    notes = Notes(trace.num_experts)
    read_bytes = [policy.read_bytes(num_rows, hidden_size) for num_rows in _told(policy, block, sets, notes)]
    parts = [*notes.parts(), *([_whole_layers(trace, len(block))] if policy.loads_whole_layers else [])]
    return Predictions.of(parts, trace.num_experts), np.concatenate(read_bytes)


class Notes:
    """Takes down what a policy answers, call by call.

    Args:
        num_experts: J.
    """

    def __init__(self, num_experts: int) -> None:
        self._num_experts = num_experts
        self._at_once: list[Predictions] = []
        self._moments: list[int] = []
        self._layers: list[int] = []
        self._probabilities: list[np.ndarray] = []
        self._experts: list[np.ndarray] = []

    def add(self, moment: int, answer: list[Prediction]) -> None:
        """What it answered at a moment (numbered as in Predictions)."""
        for prediction in answer:
            self._moments.append(moment)
            self._layers.append(prediction.layer)
            self._probabilities.append(prediction.probabilities)
            self._experts.append(prediction.experts)

    def add_all(self, predictions: Predictions) -> None:
        """What it answered for a whole block."""
        self._at_once.append(predictions)

    def parts(self) -> list[Predictions]:
        """All of it."""
        if not self._moments:
            return self._at_once
        selected = np.zeros((len(self._moments), self._num_experts), dtype=np.bool_)
        owners = np.repeat(np.arange(len(self._moments)), [len(experts) for experts in self._experts])
        selected[owners, np.concatenate(self._experts)] = True
        probabilities = np.stack(self._probabilities).astype(np.float32, copy=False)
        return [*self._at_once, Predictions(np.array(self._moments), np.array(self._layers), probabilities, selected)]


def _told(policy: Policy, block: Block, sets: list[np.ndarray], notes: Notes) -> Iterator[np.ndarray]:
    """Tell a policy of a block and note its answers; yields the rows, [n], of the iterations that it has begun to work on: of
    all at once, or of one after the other.

    Args:
        sets: what every event demands, for who needs the future.
    """
    predictions = policy.predict_block(block)
    if predictions is not None:
        notes.add_all(predictions)
        yield block.num_rows
        return
    num_layers = policy.setup.num_layers
    ahead = np.stack([block.lookahead(stride) for stride in policy.lookahead]) if policy.lookahead else None
    for number, (begin, end) in enumerate(zip(block.starts[:-1].tolist(), block.starts[1:].tolist(), strict=True)):
        first_event = number * num_layers
        if policy.needs_future:
            policy.foresee(sets[first_event : first_event + num_layers])
        embeddings = None if block.embeddings is None else block.embeddings[begin:end]
        context = Context(embeddings, bool(block.is_prefill[number]), bool(block.starts_request[number]), end - begin)
        notes.add(2 * first_event, policy.start_iteration(context))
        yield block.num_rows[number : number + 1]
        for layer in range(num_layers):
            lookahead = None if ahead is None else ahead[:, begin:end, layer]
            answer = policy.on_gate(layer, block.gates[layer, begin:end], block.experts[begin:end, layer], lookahead)
            notes.add(2 * (first_event + layer) + 1, answer)
        policy.end_iteration()


def _whole_layers(trace: RoutingTrace, num_iterations: int) -> Predictions:
    """Every layer brings in all of its experts as soon as its gate has spoken."""
    events = np.arange(num_iterations * trace.num_layers)
    shape = (len(events), trace.num_experts)
    probabilities = np.full(shape, 1.0 / trace.num_experts, dtype=np.float32)
    return Predictions(2 * events + 1, events % trace.num_layers, probabilities, np.ones(shape, dtype=np.bool_))
