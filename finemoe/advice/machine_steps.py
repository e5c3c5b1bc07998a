"""Overhead of a decode step beyond reading and arithmetic, measured with a tiny model in the engine, everything resident.

The model's weights are so small that only the framework's and the engine's own time remains. It is created in memory with random
weights, in several numbers of layers and of experts per token. Variants are measured in turn; results are medians over rounds.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from finemoe.runtime.engine import Engine
    from finemoe.traces import RoutingTrace

SHAPES = ((4, 2), (4, 6), (12, 6), (12, 2))  # layers, experts per token; the last one is also run with searches
TYPICAL_LAYERS = 32  # of large models; the overhead of a step is spread over them
NUM_MAPS = 1000  # maps that a search reads
_STEPS, _PROMPT_TOKENS = 5, 8
_EXPERTS, _WIDTH, _VOCABULARY = 8, 64, 128
_DISTANCE = 3
_TRIPS, _TURNS, _PATIENCE_S = 25, 12, 1.0  # shorter work than _TURNS trips stays in the inference thread (runtime/worker.py)


@dataclass(frozen=True)
class Overheads:
    """Overheads of a decode step beyond reading and arithmetic, in seconds.

    Attributes:
        once_s: per step; layer_s: per layer; expert_s: per computed expert; all including the engine's accounting.
        search_s: added by a policy that searches, per gate with a search: publishing, and a search of NUM_MAPS maps.
    """

    once_s: float
    layer_s: float
    expert_s: float
    search_s: float


def step_overheads(device: "torch.device", dtype: "torch.dtype", rounds: int) -> Overheads:
    """Measure the overheads.

    Args:
        rounds: number of rounds; in each, every variant generates a few tokens.
    """
    with _variants(device, dtype) as variants:
        steps_s = np.array([[variant() for variant in variants] for _ in range(rounds + 1)][1:])  # the first warms up
    plain_s = np.median(steps_s[:, :-1], axis=0).tolist()
    added_s, num_gates = float(np.median(steps_s[:, -1] - steps_s[:, -2])), SHAPES[-1][0] - _DISTANCE
    return Overheads(*solved(SHAPES, plain_s), search_s=max(0.0, added_s) / num_gates)


def solved(shapes: Sequence[tuple[int, int]], steps_s: Sequence[float]) -> tuple[float, float, float]:
    """Overheads per step, per layer, and per computed expert, by least squares and at least 0.

    Args:
        shapes: (layers, experts per token) of every step. steps_s: duration of every step.
    """
    design = np.array([[1.0, layers, layers * top_k] for layers, top_k in shapes])
    found = np.linalg.lstsq(design, np.asarray(steps_s, dtype=float), rcond=None)[0]
    once_s, layer_s, expert_s = np.maximum(found, 0.0).tolist()
    return once_s, layer_s, expert_s


def hand_over_s() -> float:
    """How long a search must take before the engine hands it over: a dozen times a round trip to a thread."""
    from finemoe.runtime.worker import Worker

    worker, times_s = Worker("finemoe-trips", "a thread that is timed"), []
    worker.start()
    try:
        for _ in range(_TRIPS):
            done, begin_s = threading.Lock(), time.perf_counter()
            done.acquire()
            worker.do(done.release)
            done.acquire(timeout=_PATIENCE_S)
            times_s.append(time.perf_counter() - begin_s)
    finally:
        worker.close()
    return _TURNS * float(np.median(times_s))


@contextmanager
def _variants(device: "torch.device", dtype: "torch.dtype") -> Iterator[list[Callable[[], float]]]:
    """Decode steps of every shape with on-demand loading, then of the last shape with FineMoE."""
    from finemoe.runtime.offloading import offload

    models = [tiny_model(*shape, device, dtype) for shape in (*SHAPES, SHAPES[-1])]
    told: dict[str, Any] = {"prefetch_distance": _DISTANCE, "store_capacity": NUM_MAPS, "history": _history(models[-1])}
    with ExitStack() as stack:
        engines = [stack.enter_context(offload(model, 1.0, "on-demand")) for model in models[:-1]]
        engines.append(stack.enter_context(offload(models[-1], 1.0, "finemoe", **told)))
        for engine in engines:
            engine.preload()
            stack.enter_context(engine.probe.accounting())
        yield [step_of(engine) for engine in engines]


def step_of(engine: "Engine") -> Callable[[], float]:
    """A function that generates a few tokens with a tiny model and returns the engine's time of a decode step."""
    import torch

    model: Any = engine.model
    prompt = torch.arange(_PROMPT_TOKENS, device=model.device)[None]
    told = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 1 + _STEPS, "do_sample": False, "pad_token_id": 0}

    def step_s() -> float:
        engine.reset_counters()
        model.generate(prompt, **told)
        return engine.report().tpot_s

    return step_s


def tiny_model(num_layers: int, top_k: int, device: "torch.device", dtype: "torch.dtype") -> Any:
    """A model of Mixtral's class with reproducible random weights and 8 experts per layer."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        hidden_size=_WIDTH,
        intermediate_size=_WIDTH,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=_EXPERTS,
        num_experts_per_tok=top_k,
        vocab_size=_VOCABULARY,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MixtralForCausalLM._from_config(config, dtype=dtype, experts_implementation="eager")
    return model.to(device).eval()


def _history(model: Any) -> "RoutingTrace":
    """Random routing to fill a store, without embeddings."""
    from finemoe.models.layers import find_moe_layers
    from finemoe.runtime.offloading import identity_of
    from finemoe.traces import DECODE, RoutingTrace

    num_layers, top_k = SHAPES[-1]
    probs = np.random.default_rng(0).dirichlet(np.ones(_EXPERTS), (NUM_MAPS, num_layers)).astype(np.float16)
    ids = np.argsort(-probs, axis=-1, kind="stable")[..., :top_k]
    return RoutingTrace(
        expert_ids=ids.astype(np.uint16),
        expert_probs=np.take_along_axis(probs, ids, axis=-1),
        offsets=np.array([0, NUM_MAPS], dtype=np.int64),
        num_experts=_EXPERTS,
        step=np.arange(1, NUM_MAPS + 1, dtype=np.int32),
        phase=np.full(NUM_MAPS, DECODE, dtype=np.uint8),
        probs=probs,
        model=identity_of(model, find_moe_layers(model)),
    )
