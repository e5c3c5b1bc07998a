"""Where the time of one decode iteration goes, measured on the live engine over a paced link (Fig. 17)."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import finemoe
from finemoe.artifact.pipeline.noise import busy_share
from finemoe.artifact.pipeline.timing import one_expert_bytes, paced_link
from finemoe.runtime.loading import load_model

if TYPE_CHECKING:
    import torch


def measured_breakdown(
    source: str,
    prompts: list[str],
    num_tokens: int,
    history: Any,
    expert_memory: float,
    prefetch_distance: int,
    load_s: float,
) -> dict[str, float]:
    """Mean decode iteration of FineMoE over a paced link, in ms by part, from the engine's own timeline (Fig. 17).

    Args:
        history: a trace or filled store that FineMoE knows in advance.
        expert_memory: share of all routed experts on the device.
        prefetch_distance: d, in layers.
        load_s: time to load one expert over the link, in seconds.
    Returns:
        attention_ms (everything outside the experts), experts_ms, engine_ms (accounting and publishing in the layers) and
        waiting_ms; search_ms and prefetching_ms, which run concurrently with these; num_layers; engine_ms_per_layer; and busy,
        the share of the cores taken by other work (`noise.busy_share`), which inflates all of these times.
    """
    model, tokenizer = load_model(source)
    options: dict[str, Any] = {"history": history, "prefetch_distance": prefetch_distance}
    with finemoe.offload(model, 1.0, "on-demand") as engine:
        engine.preload()
        resident = _decode_spans(engine, model, tokenizer, prompts, num_tokens)
    link = paced_link(one_expert_bytes(model) / load_s)
    with finemoe.offload(model, expert_memory, "finemoe", link=link, **options) as engine:
        spans = _decode_spans(engine, model, tokenizer, prompts, num_tokens)
        num_layers = len(engine.layers)
    engine_ms = max(0.0, spans["layers"] - spans["waiting"] - resident["layers"])
    return {
        "attention_ms": spans["iteration"] - spans["layers"],
        "experts_ms": resident["layers"],
        "engine_ms": engine_ms,
        "waiting_ms": spans["waiting"],
        "search_ms": spans["matcher"],
        "prefetching_ms": spans["prefetching"],
        "num_layers": num_layers,
        "engine_ms_per_layer": engine_ms / num_layers,
        "busy": busy_share(),
    }


def _decode_spans(engine: Any, model: Any, tokenizer: Any, prompts: list[str], num_tokens: int) -> dict[str, float]:
    """Mean ms per decode iteration of each span in the timeline, and of waiting and prefetching from the counters."""
    totals: dict[str, float] = dict.fromkeys(("iteration", "layers", "matcher", "waiting", "prefetching"), 0.0)
    num_steps = 0
    for prompt in prompts:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "timeline.json")
            inputs = tokenizer(prompt, return_tensors="pt")
            token, cache = _prefill(model, inputs)  # not in the timeline
            engine.reset_counters()
            with engine.timeline(path):
                _decode(model, token, cache, num_tokens)
            report = engine.report()
            events = json.loads(path.read_text())["traceEvents"]
        tracks = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
        for event in (one for one in events if one["ph"] == "X"):
            track, name = tracks[event["tid"]], event["name"].split()[0]
            kind = {"iteration": "iteration", "layer": "layers"}.get(name, track) if track == "compute" else track
            totals[kind] = totals.get(kind, 0.0) + event["dur"] / 1e3
        totals["waiting"] += 1e3 * report.stall_s
        totals["prefetching"] += (
            totals.pop("link", 0.0) * report.prefetched_bytes / max(1, report.prefetched_bytes + report.demand_bytes)
        )
        num_steps += num_tokens
    return {name: total / num_steps for name, total in totals.items()}


def _prefill(model: Any, inputs: Any) -> tuple["torch.Tensor", Any]:
    """The first new token, and the KV cache."""
    import torch

    with torch.inference_mode():
        output = model(**inputs, use_cache=True)
    return output.logits[:, -1:].argmax(-1), output.past_key_values


def _decode(model: Any, token: "torch.Tensor", cache: Any, num_tokens: int) -> None:
    """Greedy decoding after a prefill."""
    import torch

    with torch.inference_mode():
        for _ in range(num_tokens):
            output = model(input_ids=token, past_key_values=cache, use_cache=True)
            token, cache = output.logits[:, -1:].argmax(-1), output.past_key_values
