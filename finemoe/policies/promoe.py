"""ProMoE (Song et al. 2024, arXiv 2410.22134, sections 4-6): a learned predictor per layer, several layers ahead.

K experts per token are prefetched in parallel with inference. A small model, trained beforehand on recorded iterations, predicts
them for the layer d ahead. Evicts by LRU. Our version differs from the original in four ways: the model is linear and reads the
gate outputs of the last layers (a routing trace has no layer inputs, which the published two-layer perceptron reads); the cache
is one pool instead of one per layer; only demand counts as a use; and experts are computed in the model's own order instead of
starting with those that are resident. The variant `predictor="speculative"` applies the router of layer l + d to the residual
stream after layer l instead, which needs no training: the stride-speculative prototype that the FineMoE paper compares with.
"""

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.policies.base import Context, Policy, PolicySetup, Prediction, history_trace
from finemoe.policies.block import Block
from finemoe.policies.predictions import Predictions
from finemoe.policies.predictors import LayerPredictors
from finemoe.policies.speculation import router_bytes, speculate_block
from finemoe.traces import RoutingTrace

_BLOCK_ROWS = 2048
_FIRST_FIT_ROWS = 32


class ProMoE(Policy):
    """Learned prediction d layers ahead.

    Args:
        setup: model sizes, d, history (a trace to train on; None: trains on finished iterations, again at every doubling).
        predictor: "learned" or "speculative".
    """

    default_eviction = "lru"

    def __init__(self, setup: PolicySetup, predictor: str = "learned") -> None:
        super().__init__(setup)
        if predictor not in ("learned", "speculative"):
            raise FinemoeError(f"promoe has the predictors 'learned' and 'speculative', not {predictor!r}")
        self._is_speculative = predictor == "speculative"
        self.lookahead = (setup.prefetch_distance,) if self._is_speculative else ()
        history = None if self._is_speculative else history_trace(setup, "promoe")
        self._learns = not self._is_speculative and history is None
        distance = setup.prefetch_distance
        if history is None:
            self.predictors = LayerPredictors(setup.num_layers, setup.num_experts, distance)
        else:
            self.predictors = trained_predictors(history, distance)[0]
        self._next_fit_rows = _FIRST_FIT_ROWS
        self._gates: list[np.ndarray] = []
        self._experts: list[np.ndarray] = []

    def start_iteration(self, context: Context) -> list[Prediction]:
        self._gates, self._experts = [], []
        return []

    def on_gate(
        self, layer: int, probs: np.ndarray, experts: np.ndarray, lookahead: np.ndarray | None = None
    ) -> list[Prediction]:
        self._gates.append(probs)
        self._experts.append(experts)
        target = layer + self.setup.prefetch_distance
        if target >= self.setup.num_layers:
            return []
        if self._is_speculative:
            return [] if lookahead is None else [self.wanted(target, lookahead[0])]
        return [self.wanted(target, self.predictors.predict(target, self._gates))] if self.predictors.is_fitted else []

    def predict_block(self, block: Block) -> Predictions | None:
        """If the predictors are trained beforehand or not needed, predict all rows of the block together, layer by layer."""
        distance = self.setup.prefetch_distance
        if self._is_speculative:
            return speculate_block(self, block, distance)
        if self._learns:
            return None
        parts = [
            self.wanted_in_block(
                block, block.at_first_gate + 2 * layer, layer + distance, self.predictors.predict(layer + distance, block.gates)
            )
            for layer in range(self.setup.num_layers - distance if self.predictors.is_fitted else 0)
        ]
        return Predictions.of(parts, self.setup.num_experts)

    def read_bytes(self, num_rows: np.ndarray, hidden_size: int) -> np.ndarray:
        """A gate applies one layer's predictor, or one router, to all rows at once."""
        router = router_bytes(self.setup.num_experts, hidden_size)
        each = router if self._is_speculative else self.predictors.prediction_bytes
        return self._at_gates(np.full(len(num_rows), float(each)), self.setup.prefetch_distance)

    def end_iteration(self) -> None:
        is_whole = len(self._gates) == self.setup.num_layers and len({ids.shape for ids in self._experts}) == 1
        if not self._learns or not is_whole:
            return
        self.predictors.learn(np.stack(self._gates, axis=1), np.stack(self._experts, axis=1))
        if self.predictors.num_rows >= self._next_fit_rows:
            self.predictors.fit()
            self._next_fit_rows = 2 * self.predictors.num_rows


def trained_predictors(history: RoutingTrace, *distances: int) -> list[LayerPredictors]:
    """Predictors of the layers d ahead, for each d, trained on every row of a history."""
    nearest = LayerPredictors(history.num_layers, history.num_experts, min(distances))
    predictors = [nearest if distance == min(distances) else nearest.farther(distance) for distance in distances]
    for begin in range(0, history.num_rows, _BLOCK_ROWS):
        rows = slice(begin, begin + _BLOCK_ROWS)
        nearest.learn(history.maps(rows), history.expert_ids[rows].astype(np.int64))
    for one in predictors if nearest.num_rows else []:
        one.fit()
    return predictors
