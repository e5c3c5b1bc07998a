"""Wall-clock measurements of the live engine: overhead with everything resident, and behaviour over a paced link.

Variants are timed in alternation, round by round in one process, so that other work on the machine affects all of them alike.
"""

import itertools
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

import finemoe
from finemoe.artifact.progress import progress
from finemoe.intervals import Interval, bootstrap_median
from finemoe.runtime.loading import load_model

VARIANTS = ("eager", "default", "on-demand", "finemoe")
_FEWEST_ROUNDS = 10  # before the interval of a median is considered


def overhead_table(source: str, prompts: list[str], num_tokens: int, num_rounds: int, interval_width: float) -> pd.DataFrame:
    """Decode time per token of an unmodified model and of the same model offloaded with every expert resident. Both are measured
    in alternation until each of the `ratios` is known precisely enough.

    Args:
        source: name or folder of the model.
        prompts: prompts of one batch.
        num_tokens: tokens generated per prompt, at least 2; the first comes from the prefill, which is not counted.
        num_rounds: maximum number of rounds.
        interval_width: width of a ratio's interval, relative to the ratio, at which the measurement ends.
    Returns:
        Rows (round, variant, seconds_per_token); the variants are `eager`, Transformers' own default, and the policies.
    """
    models, engines = _variants(source)
    try:
        calls = {name: generation(model, tokenizer, prompts, num_tokens) for name, (model, tokenizer) in models.items()}
        expected = {name: call([]).tolist() for name, call in calls.items()}  # also warms up
        assert all(expected[name] == expected["eager"] for name in engines), "the tokens of an offloaded model differ"
        measures = {name: partial(_decode_s, call) for name, call in calls.items()}
        return rounds_until_narrow(measures, num_rounds, interval_width)
    finally:
        for engine in engines.values():
            engine.close()


def rounds_until_narrow(measures: Mapping[str, Callable[[], float]], num_rounds: int, interval_width: float) -> pd.DataFrame:
    """Measure variants in alternation, at most `num_rounds` times; see `overhead_table`.

    Returns:
        Rows (round, variant, seconds_per_token).
    """
    rows: list[dict[str, Any]] = []
    for number in progress(range(num_rounds), "at most", "round"):
        rows += [{"round": number, "variant": name, "seconds_per_token": measure()} for name, measure in measures.items()]
        if number + 1 >= _FEWEST_ROUNDS:
            found = ratios(pd.DataFrame(rows))
            if ((found.high - found.low) <= interval_width * found.ratio).all():
                break
    return pd.DataFrame(rows)


def ratios(table: pd.DataFrame, baseline: str = "eager", seed: int = 0) -> pd.DataFrame:
    """Median over rounds of each variant's time over the baseline's in the same round, with its bootstrap interval."""
    by_round = table.pivot_table(index="round", columns="variant", values="seconds_per_token", sort=False)
    found = {name: bootstrap_median((by_round[name] / by_round[baseline]).to_numpy(), seed=seed) for name in by_round}
    rows = [{"variant": name, "ratio": i.value, "low": i.low, "high": i.high} for name, i in found.items() if name != baseline]
    return pd.DataFrame(rows).assign(num_rounds=len(by_round))


def engine_time_table(source: str, num_rounds: int) -> pd.DataFrame:
    """The engine's own time per layer at one token: everything but the experts' arithmetic, which is skipped.

    Returns:
        Rows (policy, expert_memory, microseconds_per_layer), medians over rounds. Measured with all experts resident, and with
        half of them where every demanded one is a hit: this includes accounting and publishing but no transfer.
    """
    rows = []
    for policy, share in itertools.product(("on-demand", "finemoe"), (1.0, 0.5)):
        model, _ = load_model(source)
        with finemoe.offload(model, share, policy) as engine:
            engine.preload()
            time_s = engine_time_s(engine, num_rounds)
        rows.append({"policy": policy, "expert_memory": share, "microseconds_per_layer": time_s * 1e6})
    return pd.DataFrame(rows)


def engine_time_s(engine: Any, num_rounds: int) -> float:
    """An engine's own time per layer at one token, in seconds, without the experts' arithmetic and without misses; median."""
    with no_arithmetic(engine):
        return float(np.median([_layers_s(engine) for _ in range(num_rounds)]))


def expert_time_s(engine: Any, num_rounds: int) -> float:
    """Time of one expert's arithmetic for one token, in seconds; median."""
    with_arithmetic_s = float(np.median([_layers_s(engine) for _ in range(num_rounds)]))
    return max(0.0, with_arithmetic_s - engine_time_s(engine, num_rounds)) / engine.setup.top_k


def stall_ratio(source: str, prompt: str, bytes_per_s: float, num_tokens: int) -> float:
    """Measured stall of on-demand loading over bytes / bandwidth, with one expert slot and a paced link."""
    model, tokenizer = load_model(source)
    with finemoe.offload(model, one_expert_bytes(model), "on-demand", link=paced_link(bytes_per_s)) as engine:
        generation(model, tokenizer, [prompt], num_tokens)([])
        report = engine.report()
    return report.stall_s / (report.demand_bytes / bytes_per_s)


def hidden_share(source: str, bytes_per_s: float, num_trials: int) -> Interval:
    """Share of a transfer that a prefetch hides if its expert is demanded after the transfer's nominal time."""
    shares = []
    for memory, record_s in _one_memory(source, bytes_per_s, num_trials):
        post(memory, layer=5, experts=1)
        time.sleep(1.5 * record_s)
        shares.append(1 - demand_s(memory, 5, 0) / record_s)
    return bootstrap_median(np.array(shares))


def overtaking_s(source: str, bytes_per_s: float, num_trials: int) -> tuple[Interval, float]:
    """How long an on-demand load waits behind a full queue of prefetches before its own transfer starts, and the time of what is
    in flight at once, in seconds."""
    waits, chunk_s = [], 0.0
    for memory, record_s in _one_memory(source, bytes_per_s, num_trials):
        chunk_s = memory.link.chunk_bytes * memory.link.chunks_in_flight / bytes_per_s
        for layer in range(5, 9):
            post(memory, layer=layer, experts=4)
        time.sleep(1.3 * record_s)  # in the middle of the transfers
        waits.append(demand_s(memory, 2, 7) - record_s)
    return bootstrap_median(np.array(waits)), chunk_s


def bandwidth_for(source: str, load_s: float) -> float:
    """Bandwidth in bytes per second at which one expert of the model takes `load_s` seconds."""
    model, _ = load_model(source)
    return one_expert_bytes(model) / load_s


def _variants(source: str) -> tuple[dict[str, tuple[Any, Any]], dict[str, Any]]:
    models = {name: load_model(source) for name in VARIANTS}
    models["default"][0].set_experts_implementation("grouped_mm")
    engines = {name: finemoe.offload(models[name][0], 1.0, name) for name in ("on-demand", "finemoe")}
    for engine in engines.values():
        engine.preload()
    return models, engines


def generation(model: Any, tokenizer: Any, prompts: list[str], num_tokens: int) -> Callable[[list[Any]], Any]:
    """A call that greedily generates exactly `num_tokens` tokens; it takes logits processors, which run once per token."""
    inputs = tokenizer(prompts, return_tensors="pt", padding=len(prompts) > 1)
    options = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "do_sample": False}
    options["pad_token_id"] = tokenizer.pad_token_id
    return lambda processors: model.generate(**inputs, **options, logits_processor=processors)


def _decode_s(call: Callable[[list[Any]], object]) -> float:
    """Time per token after the first, in seconds."""
    times_s: list[float] = []

    def note(_: Any, scores: Any) -> Any:
        times_s.append(time.perf_counter())
        return scores

    call([note])
    return (times_s[-1] - times_s[0]) / (len(times_s) - 1)


def no_arithmetic(engine: Any) -> AbstractContextManager[None]:
    """Within the block, the engine passes a layer's input through instead of computing its experts."""
    return engine.probe.computing_with(lambda module, weights, hidden_states, *_: hidden_states)


def _layers_s(engine: Any) -> float:
    """Time per layer of one iteration over all layers, in seconds; each layer demands experts 0 to K-1."""
    import torch

    layers, top_k = engine.layers, engine.setup.top_k
    hidden = torch.zeros(1, engine.model.config.hidden_size)
    selected, weights = torch.arange(top_k)[None], torch.full((1, top_k), 1.0 / top_k)
    with torch.inference_mode():
        begin_s = time.perf_counter()
        for layer in layers:
            layer.experts(hidden, selected, weights)
        return (time.perf_counter() - begin_s) / len(layers)


def one_expert_bytes(model: Any) -> int:
    """Size of one expert's record, in bytes."""
    from finemoe.models.layers import find_moe_layers
    from finemoe.runtime.expert_layout import ExpertLayout

    return max(ExpertLayout.of(layer).nbytes for layer in find_moe_layers(model))


def paced_link(bytes_per_s: float) -> str:
    """The `link` option of `finemoe.offload` for a link of this bandwidth."""
    return f"paced:{bytes_per_s:.0f}B/s"


def _one_memory(source: str, bytes_per_s: float, num_trials: int) -> Any:
    """A fresh expert memory for each trial, and the time of one expert's transfer."""
    model, _ = load_model(source)
    record_s = one_expert_bytes(model) / bytes_per_s
    for _ in range(num_trials):
        with finemoe.offload(model, 0.5, "on-demand", link=paced_link(bytes_per_s)) as engine:
            memory = started_memory(engine)
            yield memory, record_s


def started_memory(engine: Any) -> Any:
    """The expert memory of the first device, in its first iteration."""
    memory = engine.memories.memories[0]
    memory.start_iteration(1)
    return memory


def post(memory: Any, layer: int, experts: int) -> None:
    """Have a memory prefetch the first experts of a layer."""
    from finemoe.policies.base import Prediction

    probabilities = np.full(memory.expected.shape[1], 0.5, dtype=np.float32)
    memory.post(1, [Prediction(layer, probabilities, np.arange(experts))])


def demand_s(memory: Any, layer: int, expert: int) -> float:
    """Time in seconds until a demanded expert may be read."""
    begin_s = time.perf_counter()
    lease = memory.demand(layer, np.array([expert]))
    lease.weights(expert)
    lease.end()
    return time.perf_counter() - begin_s
