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

    from finemoe.traces import RoutingTrace

SHAPES = ((4, 2), (4, 6), (12, 6), (12, 2))  # layers, experts a token; the last one is searched for, too
TYPICAL_LAYERS = 32  # of large models, over which what a step takes once is spread
NUM_MAPS = 1000  # that a search goes through
_STEPS, _PROMPT_TOKENS = 4, 8
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
        rounds: in each of which every variant takes some steps.
    """
    with _variants(device, dtype) as variants:
        steps = np.array([[variant() for variant in variants] for _ in range(rounds + 1)][1:])  # the first warms up
    # What else the machine does only adds: of every round the least counts.
    *plain_s, searching_s = np.median(steps.min(axis=2), axis=0).tolist()
    num_gates = SHAPES[-1][0] - _DISTANCE
    return Overheads(*solved(SHAPES, plain_s), search_s=max(0.0, searching_s - plain_s[-1]) / num_gates)


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
def _variants(device: "torch.device", dtype: "torch.dtype") -> Iterator[list[Callable[[], list[float]]]]:
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
        yield [steps_of(model, device) for model in models]


def steps_of(model: Any, device: "torch.device") -> Callable[[], list[float]]:
    """A call that takes decode steps behind the same tokens, and says how long each took."""
    import torch

    tokens = torch.arange(_PROMPT_TOKENS + 1, device=device)[None]
    finish = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    with torch.inference_mode():
        cache = model(input_ids=tokens[:, :_PROMPT_TOKENS], use_cache=True).past_key_values

    def step_s() -> float:
        begin_s = time.perf_counter()
        model(input_ids=tokens[:, _PROMPT_TOKENS:], past_key_values=cache, use_cache=True)
        finish()
        end_s = time.perf_counter()
        cache.crop(-1)
        return end_s - begin_s

    @torch.inference_mode()
    def steps() -> list[float]:
        return [step_s() for _ in range(_STEPS)]

    return steps


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
