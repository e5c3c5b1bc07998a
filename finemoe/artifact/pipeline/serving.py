"""Serve requests one by one with a model, offloaded or not, and record tokens, counts and times of each."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finemoe.artifact.progress import Steps, steps

if TYPE_CHECKING:
    from finemoe.runtime.engine import Engine

COUNTS = ["accesses", "hits", "late", "misses", "hit_rate", "recall_at_k", "prefetched_bytes", "demand_bytes", "wasted_bytes"]
TIMES = ["ttft_s", "tpot_s", "stall_s"]


@dataclass(frozen=True)
class Served:
    """One served request.

    Attributes:
        tokens: ids of the prompt and generated tokens.
        seconds: wall-clock time of the whole request.
        report: the engine's report as a dict of this request's counts and times; empty without an engine.
    """

    tokens: tuple[int, ...]
    seconds: float
    report: dict[str, Any]


def serve(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    engine: "Engine | None" = None,
    title: str = "",
    min_new_tokens: int | None = None,
) -> list[Served]:
    """Generate greedily for each prompt in turn. The expert cache stays warm between requests; the counters are reset.

    Args:
        max_new_tokens: maximum number of tokens generated per prompt.
        engine: the engine of an offloaded model.
        title: title of a progress bar that counts tokens; "" shows none, which is the choice for precise measurements.
        min_new_tokens: tokens generated at least; without them, a prompt whose answer ends at once has no time per token.
    """
    lengths = {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens}
    if not title:
        return [_serve_one(model, tokenizer, prompt, lengths, engine) for prompt in prompts]
    with steps(title, len(prompts) * max_new_tokens, "token") as bar:
        return [_serve_one(model, tokenizer, prompt, lengths, engine, bar) for prompt in prompts]


def _serve_one(
    model: Any,
    tokenizer: Any,
    prompt: str,
    lengths: dict[str, int | None],
    engine: "Engine | None",
    streamer: Steps | None = None,
) -> Served:
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    if engine is not None:
        engine.reset_counters()
    begin_s = time.perf_counter()
    output = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        **lengths,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        streamer=streamer,
    )
    seconds = time.perf_counter() - begin_s
    report = {} if engine is None else engine.report().to_dict()
    return Served(tuple(output[0].tolist()), seconds, {name: report[name] for name in [*COUNTS, *TIMES] if report})
