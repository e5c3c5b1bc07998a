"""finemoe-plus (not in the paper): forecasts learned while serving, and prefetches that must be worth the slot they take.

At every gate the policy forecasts the next layers and, past the last layer, those of the next token (`maps.forecaster`). Eviction
uses the forecasts (`cache.rules.next_use`). An expert is prefetched only if the same rule values it higher than the expert it
would evict, by a margin that pays for prefetches that turn out to be useless.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.files import require_place
from finemoe.maps.forecast_step import foretell_gate_address
from finemoe.maps.forecaster import MOST_ROWS, Forecaster
from finemoe.maps.warm_up import warm_up_forecasts
from finemoe.policies.base import Context, Policy, PolicySetup, Prediction, history_trace
from finemoe.policies.block import Block
from finemoe.policies.gate_step import GateStep
from finemoe.policies.predictions import Predictions

LEAST_GAIN = 0.25  # loads: the smallest that wastes at most a third of what FineMoE wastes, see analysis.margin
LAYERS_LOADED = 8  # maximum number of layers ahead to prefetch


class FinemoePlus(Policy):
    """Forecasts for every distance d at once.

    Args:
        setup: model sizes, history, seed; its prefetch distance and store capacity are not used. The history is a trace to learn
            from, or a trained forecaster; what was learned from it stays fixed. None learns while serving.
        least_gain: expected gain of a prefetch, in loads, from 0 to 1 (at 1 nothing is prefetched). The next-use rule weighs in
            these units. Other rules use other units: under LRU, for example, almost nothing is prefetched.
        warm: a file that holds what earlier runs of the same model learned. This run continues from it and saves its own state
            to it at the end; the file need not exist yet.
    Raises:
        FinemoeError: least_gain is out of range; the file is damaged, of another model, or cannot be written; or a history is
            given in addition to `warm`.
    """

    default_eviction = "next-use"
    least_gain: float = LEAST_GAIN

    def __init__(self, setup: PolicySetup, least_gain: float = LEAST_GAIN, warm: str | Path | None = None) -> None:
        super().__init__(setup)
        if not 0 <= least_gain <= 1:
            raise FinemoeError(f"least_gain is {least_gain!r}; it must be in 0..1 (loads)")
        warm_up_forecasts()
        self.least_gain = least_gain
        self._warm, self.saves = warm, warm is not None
        self.forecaster = forecaster_from(setup) if warm is None else _warm_forecaster(setup, Path(warm))

    def start_iteration(self, context: Context) -> list[Prediction]:
        if context.starts_request:
            self.forecaster.start_request()
        forecast = self.forecaster.start(context.num_rows, bool(context.is_prefill), context.embeddings)
        return [self._foretold(layer, probabilities, True) for layer, probabilities in enumerate(forecast)]

    def on_gate(
        self, layer: int, probs: np.ndarray, experts: np.ndarray, lookahead: np.ndarray | None = None
    ) -> list[Prediction]:
        forecast, num_layers = self.forecaster.hear(layer, probs, experts, lookahead), self.setup.num_layers
        return [
            self._foretold(
                (layer + distance) % num_layers, probabilities, layer + distance < num_layers and distance <= LAYERS_LOADED
            )
            for distance, probabilities in zip(self.forecaster.distances, forecast, strict=True)
        ]

    def gate_step(self, num_rows: int) -> GateStep:
        step = self.forecaster.step(self.least_gain, LAYERS_LOADED)
        return GateStep(foretell_gate_address(), step.table, len(self.forecaster.distances), step)

    def end_iteration(self) -> None:
        return None

    def save(self) -> None:
        if self._warm is not None:
            self.forecaster.save(self._warm)

    def learned(self) -> dict[str, np.ndarray]:
        return {} if self.forecaster.is_frozen else self.forecaster.state()

    def restore(self, learned: Mapping[str, np.ndarray]) -> None:
        if not self.forecaster.is_frozen:
            self.forecaster.restore(dict(learned))

    def predict_block(self, block: Block) -> Predictions:
        """Predict all iterations of a block in one compiled call."""
        at_starts, at_gates = self.forecaster.forecast_block(
            block.gates, block.experts, block.starts, block.is_prefill, block.starts_request, block.embeddings
        )
        num_layers, num_experts = self.setup.num_layers, self.setup.num_experts
        count, num_first = at_starts.shape[:2]
        gates = np.arange(num_layers)[:, None]
        targets = gates + np.array(self.forecaster.distances)[None]
        moments = block.at_first_gate[:, None] + 2 * gates.T
        shape = count, *targets.shape
        parts = [
            self._in_block(np.repeat(block.at_start, num_first), np.tile(np.arange(num_first), count), at_starts),
            self._in_block(
                np.repeat(moments.reshape(-1), targets.shape[1]),
                np.broadcast_to(targets % num_layers, shape).reshape(-1),
                at_gates,
                np.broadcast_to((targets - gates <= LAYERS_LOADED) & (targets < num_layers), shape).reshape(-1),
            ),
        ]
        return Predictions.of(parts, num_experts)

    def _in_block(
        self, moments: np.ndarray, layers: np.ndarray, forecasts: np.ndarray, may_load: np.ndarray | None = None
    ) -> Predictions:
        probabilities = forecasts.reshape(-1, self.setup.num_experts)
        selected = probabilities >= self.least_gain
        if may_load is not None:
            selected &= may_load[:, None]
        return Predictions(moments, layers, probabilities, selected)

    def read_bytes(self, num_rows: np.ndarray, hidden_size: int) -> np.ndarray:
        """A gate reads its layer's network once per row that it predicts for, and once more to learn from the row."""
        return self._at_gates(2.0 * self.forecaster.network_bytes * np.minimum(num_rows, MOST_ROWS), distance=0)

    def _foretold(self, layer: int, probabilities: np.ndarray, may_load: bool) -> Prediction:
        experts = np.flatnonzero(probabilities >= self.least_gain) if may_load else np.zeros(0, dtype=np.int64)
        return Prediction(layer, probabilities, experts)


def forecaster_from(setup: PolicySetup) -> Forecaster:
    """The forecaster at the start of a run: one with the knowledge of the given one or of a history trace; otherwise a new one.

    Raises:
        FinemoeError: the history is of a model with other sizes, or is neither a trace nor a forecaster.
    """
    history, sizes = setup.history, (setup.num_layers, setup.num_experts, setup.top_k)
    forecaster = Forecaster(*sizes, seed=setup.seed, model=setup.model)
    if isinstance(history, Forecaster):
        if (found := (history.num_layers, history.num_experts, history.top_k)) != sizes:
            texts = ["{} layers x {} experts / {}".format(*one) for one in (found, sizes)]
            raise FinemoeError(f"the history is of a model with {texts[0]}, this model has {texts[1]}")
        forecaster.restore(history.state())
    elif (trace := history_trace(setup, "finemoe-plus")) is not None:
        forecaster.learn_trace(trace)
    forecaster.is_frozen = history is not None
    return forecaster


def _warm_forecaster(setup: PolicySetup, path: Path) -> Forecaster:
    """A forecaster that continues from earlier runs, or a new one."""
    if setup.history is not None:
        raise FinemoeError("give either history, which is learned first and then stays fixed, or warm, which goes on learning")
    require_place(path)
    if not path.exists():
        return forecaster_from(setup)
    try:
        forecaster = forecaster_from(replace(setup, history=Forecaster.load(path)))
    except FinemoeError as error:
        raise FinemoeError(f"warm={str(path)!r}: {error}; name another file, or remove this one to start afresh") from error
    forecaster.is_frozen = False
    return forecaster
