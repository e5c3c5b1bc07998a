"""Ask a policy about a block of recorded routing: what it predicts, and how many bytes its own work reads.

Predictions never depend on what is resident. A policy can therefore be asked first, and caches of any size simulated afterwards;
if its knowledge is fixed, it may answer for the whole block at once (`Policy.predict_block`). The bytes are asked during the run,
because a growing store takes longer to search from iteration to iteration.
"""

import numpy as np

from finemoe.policies.base import Context, Policy, Prediction, checked
from finemoe.policies.block import Block
from finemoe.policies.predictions import Predictions


def ask(
    policy: Policy,
    block: Block,
    begins: np.ndarray,
    demanded: np.ndarray,
    hidden_size: int | None = None,
    is_streamed: np.ndarray | None = None,
) -> tuple[Predictions, np.ndarray | None]:
    """The policy's predictions for every iteration of a block, and the bytes it reads for them.

    Args:
        begins, demanded: what the block's events demand (`demanded_sets`). hidden_size: h of the simulated model, see
            `Policy.read_bytes`; None if the bytes are not needed.
        is_streamed: [n] which iterations are (`streamed`); None for none.
    Returns:
        predictions; read_bytes [n, 1 + L] at every iteration's start and gates.
    """
    is_streamed = np.zeros(block.num_iterations, dtype=np.bool_) if is_streamed is None else is_streamed
    predictions = None if is_streamed.any() else policy.predict_block(block)  # which does not know what is streamed
    if predictions is None:
        sets = np.split(demanded, begins[1:-1]) if policy.needs_future else []
        predictions, read_bytes = _step_by_step(policy, block, sets, is_streamed, hidden_size)
    else:
        predictions = predictions.checked(policy.setup.num_layers, policy.setup.num_experts, block.num_iterations)
        read_bytes = None if hidden_size is None else policy.read_bytes_in_block(block, hidden_size)
    if policy.loads_whole_layers:
        predictions = Predictions.of([predictions, _whole_layers(policy, block.num_iterations)], policy.setup.num_experts)
    return predictions, read_bytes


def streamed(policy: Policy, block: Block) -> np.ndarray:
    """Which iterations of a block are streamed, [n] bool."""
    if policy.setup.stream_prompts_from is None:
        return np.zeros(block.num_iterations, dtype=np.bool_)
    is_streamed: np.ndarray = block.num_rows >= policy.setup.stream_prompts_from
    for number in np.flatnonzero(is_streamed).tolist():
        is_streamed[number] = policy.streams(int(block.num_rows[number]), bool(block.is_prefill[number]))
    return is_streamed


class Notes:
    """Collects a policy's answers, call by call.

    Args:
        num_experts: J.
    """

    def __init__(self, num_experts: int) -> None:
        self._num_experts = num_experts
        self._moments: list[int] = []
        self._layers: list[int] = []
        self._probabilities: list[np.ndarray] = []
        self._experts: list[np.ndarray] = []

    def add(self, moment: int, answer: list[Prediction]) -> None:
        """Add the answer at a moment (numbered as in Predictions)."""
        for prediction in answer:
            self._moments.append(moment)
            self._layers.append(prediction.layer)
            self._probabilities.append(prediction.probabilities)
            self._experts.append(prediction.experts)

    def predictions(self) -> Predictions:
        """All answers together."""
        if not self._moments:
            return Predictions.none(self._num_experts)
        selected = np.zeros((len(self._moments), self._num_experts), dtype=np.bool_)
        owners = np.repeat(np.arange(len(self._moments)), [len(experts) for experts in self._experts])
        selected[owners, np.concatenate(self._experts)] = True
        probabilities = np.stack(self._probabilities).astype(np.float32, copy=False)
        return Predictions(np.array(self._moments), np.array(self._layers), probabilities, selected)


def _step_by_step(
    policy: Policy, block: Block, sets: list[np.ndarray], is_streamed: np.ndarray, hidden_size: int | None
) -> tuple[Predictions, np.ndarray | None]:
    """Like `ask`, in the order of a live run: start, every gate, end, iteration after iteration.

    Args:
        sets: what every event demands, for policies that need the future. is_streamed: as in `ask`.
    """
    num_layers, notes, read_bytes = policy.setup.num_layers, Notes(policy.setup.num_experts), []
    ahead = np.stack([block.lookahead(stride) for stride in policy.lookahead]) if policy.lookahead else None
    for number, (begin, end) in enumerate(zip(block.starts[:-1].tolist(), block.starts[1:].tolist(), strict=True)):
        first_event = number * num_layers
        if policy.needs_future:
            policy.foresee(sets[first_event : first_event + num_layers])
        embeddings = None if block.embeddings is None else block.embeddings[begin:end]
        told = bool(block.is_prefill[number]), bool(block.starts_request[number])
        context = Context(embeddings, *told, end - begin, bool(is_streamed[number]))
        notes.add(2 * first_event, checked(policy.start_iteration(context), policy.setup))
        if hidden_size is not None:  # asked now, because what the policy knows may grow from iteration to iteration
            read_bytes.append(policy.read_bytes(block.num_rows[number : number + 1], hidden_size))
        for layer in range(num_layers):
            lookahead = None if ahead is None else ahead[:, begin:end, layer]
            answer = policy.on_gate(layer, block.gates[layer, begin:end], block.experts[begin:end, layer], lookahead)
            notes.add(2 * (first_event + layer) + 1, checked(answer, policy.setup))
        policy.end_iteration()
    return notes.predictions(), np.concatenate(read_bytes) if read_bytes else None


def _whole_layers(policy: Policy, num_iterations: int) -> Predictions:
    """Predictions that load all experts of every layer as soon as its gate has fired."""
    num_layers, num_experts = policy.setup.num_layers, policy.setup.num_experts
    events = np.arange(num_iterations * num_layers)
    shape = (len(events), num_experts)
    probabilities = np.full(shape, 1.0 / num_experts, dtype=np.float32)
    return Predictions(2 * events + 1, events % num_layers, probabilities, np.ones(shape, dtype=np.bool_))
