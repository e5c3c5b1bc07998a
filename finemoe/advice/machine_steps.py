"""What a decode step takes here beyond reading and arithmetic: a tiny model, run by the engine with everything resident.

Its weights are so small that what remains is the framework's and the engine's own time. The model is made in memory with random
weights, in several numbers of layers and of experts a token. What is compared is measured in turn; medians are over rounds.
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

SHAPES = ((4, 2), (4, 6), (12, 6), (12, 2))  # layers, experts a token; the last one is searched for, too
TYPICAL_LAYERS = 32  # of large models, over which what a step takes once is spread
NUM_MAPS = 1000  # that a search goes through
_STEPS, _PROMPT_TOKENS = 5, 8
_EXPERTS, _WIDTH, _VOCABULARY = 8, 64, 128
_DISTANCE = 3
_TRIPS, _TURNS, _PATIENCE_S = 25, 12, 1.0  # the engine itself does what takes less than so many trips (runtime/worker.py)


@dataclass(frozen=True)
class Overheads:
    """What a decode step takes beyond reading and arithmetic, in seconds.

    Attributes:
        once_s: per step; layer_s: per layer; expert_s: per expert computed; all with the engine's accounting.
        search_s: what a policy that searches adds per gate at which it does, publishing and a search of NUM_MAPS maps.
    """

    once_s: float
    layer_s: float
    expert_s: float
    search_s: float


def step_overheads(device: "torch.device", dtype: "torch.dtype", rounds: int) -> Overheads:
    """Measure them.

    Args:
        rounds: in each of which every variant generates a few tokens.
    """
    with _variants(device, dtype) as variants:
        steps_s = np.array([[variant() for variant in variants] for _ in range(rounds + 1)][1:])  # the first warms up
    plain_s = np.median(steps_s[:, :-1], axis=0).tolist()
    added_s, num_gates = float(np.median(steps_s[:, -1] - steps_s[:, -2])), SHAPES[-1][0] - _DISTANCE
    return Overheads(*solved(SHAPES, plain_s), search_s=max(0.0, added_s) / num_gates)


def solved(shapes: Sequence[tuple[int, int]], steps_s: Sequence[float]) -> tuple[float, float, float]:
    """What a step takes once, per layer, and per expert computed, by least squares and at least 0.

    Args:
        shapes: (layers, experts a token) of every step; steps_s: how long it took.
    """
    design = np.array([[1.0, layers, layers * top_k] for layers, top_k in shapes])
    found = np.linalg.lstsq(design, np.asarray(steps_s, dtype=float), rcond=None)[0]
    once_s, layer_s, expert_s = np.maximum(found, 0.0).tolist()
    return once_s, layer_s, expert_s


def hand_over_s() -> float:
    """How long a search must take for the engine to hand it over: a dozen times what a trip to a thread and back takes."""
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
    """Decode steps of every shape under loading on demand, then of the last shape under FineMoE."""
    import finemoe

    models = [tiny_model(*shape, device, dtype) for shape in (*SHAPES, SHAPES[-1])]
    told: dict[str, Any] = {"prefetch_distance": _DISTANCE, "store_capacity": NUM_MAPS, "history": _history(models[-1])}
    with ExitStack() as stack:
        engines = [stack.enter_context(finemoe.offload(model, 1.0, "on-demand")) for model in models[:-1]]
        engines.append(stack.enter_context(finemoe.offload(models[-1], 1.0, "finemoe", **told)))
        for engine in engines:
            engine.preload()
            stack.enter_context(engine.probe.accounting())
        yield [step_of(engine) for engine in engines]


def step_of(engine: "Engine") -> Callable[[], float]:
    """A call that generates a few tokens with a tiny model and gives the time of a decode step, as the engine reports it."""
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
    """A model of Mixtral's class with random weights, the same every time, and 8 experts a layer."""
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
    """Random routing that fills a store, without embeddings."""
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
