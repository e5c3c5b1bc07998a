"""One decode step of the live engine, as its own timeline recorded it: compute, link and matcher (engine.md)."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemoe.artifact.plotting import provenance, save_table
from finemoe.paths import DATA, MINIATURES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TIMELINE = DATA / "reference" / "docs" / "timeline_measured.csv"
MODEL, LOAD_S, EXPERT_MEMORY = "mixtral-mini", 0.005, 0.25
_PROMPT = "User: Why is the sea salty?"
_LAYERS = range(8, 20)  # those drawn
_HEIGHT = 0.5
_KINDS = {  # lane, share of its height, face, hatch, label; in the order in which they are drawn
    "semantic": (2, 1.0, "#000000", "", ""),
    "trajectory": (2, 1.0, "#000000", "", "map search"),
    "layer": (1, 1.0, "#56B4E9", "", "layer computes"),
    "wait": (1, 0.5, "#FFFFFF", "////", "... and waits for an expert"),
    "prefetch": (0, 1.0, "#BFE5D9", "", "expert prefetched"),
    "demand": (0, 1.0, "#D55E00", "", "expert loaded on demand"),
}


def record_timeline(path: Path = TIMELINE) -> "pd.DataFrame":
    """Run one decode step of a miniature over a paced link, with a history of other prompts, and keep its spans.

    Returns:
        One row per span: track, name, begin_ms and end_ms from the step's begin; also written to `path`.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import finemoe
    from finemoe.models.layers import find_moe_layers
    from finemoe.workloads import read_prompts

    model: Any = AutoModelForCausalLM.from_pretrained(MINIATURES / MODEL)
    tokenizer = AutoTokenizer.from_pretrained(MINIATURES / MODEL)
    layer = find_moe_layers(model)[0]
    expert_bytes = sum(p.nbytes for p in layer.expert_parameters().values()) / layer.num_experts
    prompts = [prompt["prompt"] for prompt in read_prompts("questions", limit=24) if prompt["split"] == "history"]
    history = finemoe.record(model, prompts, tokenizer=tokenizer, max_new_tokens=24)
    inputs = tokenizer(_PROMPT, return_tensors="pt")
    link = f"paced:{expert_bytes / LOAD_S:.0f}B/s"
    with (
        tempfile.TemporaryDirectory() as folder,
        torch.no_grad(),
        finemoe.offload(model, expert_memory=EXPERT_MEMORY, history=history, link=link) as engine,
    ):
        model.generate(**inputs, max_new_tokens=12, do_sample=False)
        with engine.timeline(Path(folder) / "step.json"):
            model.generate(**inputs, max_new_tokens=6, do_sample=False)
        events = json.loads((Path(folder) / "step.json").read_text(encoding="utf-8"))["traceEvents"]
    table = last_step(events)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_table(table, path)
    return table


def last_step(events: list[dict]) -> "pd.DataFrame":
    """The spans of the last iteration, in milliseconds from its begin."""
    import pandas as pd

    tracks = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    spans = [
        (tracks[event["tid"]], event["name"], event["ts"] / 1e3, (event["ts"] + event["dur"]) / 1e3)
        for event in events
        if event["ph"] == "X"
    ]
    begin_ms, end_ms = next((begin, end) for _, name, begin, end in reversed(spans) if name.startswith("iteration"))
    within = [(track, name, begin - begin_ms, end - begin_ms) for track, name, begin, end in spans if begin_ms <= begin <= end_ms]
    return pd.DataFrame(within, columns=["track", "name", "begin_ms", "end_ms"]).round(3)


def layer_states(table: "pd.DataFrame") -> dict[int, str]:
    """Of each layer drawn: "hit", "late" or "miss", the last two if it waited for such an expert."""
    demanded = {name.split()[1] for name in table["name"] if name.startswith("demand")}
    states: dict[int, str] = {}
    for expert in [name.split()[1] for name in table["name"] if name.startswith("wait")]:
        layer = int(expert.split(".")[0])
        states[layer] = "miss" if expert in demanded or states.get(layer) == "miss" else "late"
    return {layer: states.get(layer, "hit") for layer in _LAYERS}


def timeline_drawing(table: "pd.DataFrame") -> "Figure":
    """Some layers of the step, one lane for each thread that works."""
    import matplotlib.pyplot as plt

    spans = table.assign(kind=[name.split()[0] for name in table["name"]], what=[name.split()[-1] for name in table["name"]])
    layers = spans[spans["kind"] == "layer"]
    shown = layers[layers["what"].isin([str(layer) for layer in _LAYERS])]
    begin_ms, end_ms = float(shown["begin_ms"].min()) - 0.5, float(shown["end_ms"].max()) + 0.5
    spans = spans[(spans["end_ms"] > begin_ms) & (spans["begin_ms"] < end_ms)]
    states = layer_states(table)
    fig, ax = plt.subplots(figsize=(7.0, 2.5))
    for kind in _KINDS:  # loads on demand over the prefetches that they interrupt
        for _, span in spans[spans["kind"] == kind].iterrows():
            _bar(ax, kind, span)
    for _, span in shown.iterrows():
        middle = (span["begin_ms"] + span["end_ms"]) / 2
        ax.text(middle, 1.31, span["what"], ha="center", fontsize=6.5)
        ax.text(middle, 0.58, states[int(span["what"])], ha="center", fontsize=6)
    for _, span in spans[spans["kind"].isin(["demand", "prefetch"])].iterrows():
        height = 0.36 if span["kind"] == "demand" else -0.46
        place = (span["begin_ms"] + span["end_ms"]) / 2 if span["kind"] == "demand" else span["begin_ms"] + 1.2
        if begin_ms < place < end_ms - 1:
            ax.text(place, height, span["what"], ha="center", fontsize=6)
    ax.set_xlim(begin_ms, end_ms)
    ax.set_ylim(-0.6, 2.4)
    ax.set_yticks([2, 1, 0], ["matcher", "compute", "link"])
    ax.set_xlabel("ms from the start of the decode step (numbers: MoE layer, layer.expert)")
    ax.grid(visible=False)
    _legend(fig)
    details = f"{MODEL}, {EXPERT_MEMORY:.0%} of the experts resident, {LOAD_S * 1e3:g} ms an expert"
    provenance(fig, "live engine over a paced link", details, "data/reference/docs/timeline_measured.csv")
    return fig


def _bar(ax: "Axes", kind: str, span: "pd.Series") -> None:
    lane, height, face, hatch, _ = _KINDS[kind]
    ax.broken_barh(
        [(span["begin_ms"], span["end_ms"] - span["begin_ms"])],
        (lane - _HEIGHT / 2, _HEIGHT * height),
        facecolor=face,
        hatch=hatch,
        edgecolor="#000000",
        linewidth=0.4,
    )


def _legend(fig: "Figure") -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=face, hatch=hatch, edgecolor="#000000", linewidth=0.4, label=label)
        for _, _, face, hatch, label in _KINDS.values()
        if label
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=5, fontsize=6.5, columnspacing=1.0)
