"""One decode step of the live engine, as its own timeline recorded it: compute, link and matcher (engine.md)."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

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
_LANES = {"matcher": 2.0, "compute": 1.0, "link": 0.0}
_HEIGHT = 0.5
_LOOKS = {  # face, hatch
    "compute": ("#56B4E9", ""),
    "waits": ("#FFFFFF", "////"),
    "demand": ("#D55E00", ""),
    "prefetch": ("#009E73", "...."),
    "search": ("#000000", ""),
}
_LABELS = {
    "compute": "layer computes",
    "waits": "layer waits for an expert",
    "demand": "expert loaded on demand (miss)",
    "prefetch": "expert prefetched",
    "search": "map search",
}


def record_timeline(path: Path = TIMELINE) -> "pd.DataFrame":
    """Run one decode step of a miniature over a paced link, with a history of other prompts, and keep its spans.

    Returns:
        One row per span: track, name, begin_ms and end_ms from the step's begin; also written to `path`.
    """
    import finemoe
    import torch
    from finemoe.models.layers import find_moe_layers
    from finemoe.workloads import read_prompts
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(MINIATURES / MODEL)
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
    table = _last_step(events)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_table(table, path)
    return table


def _last_step(events: list[dict]) -> "pd.DataFrame":
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


def timeline_drawing(table: "pd.DataFrame") -> "Figure":
    """Some layers of the step, one lane for each thread that works."""
    import matplotlib.pyplot as plt

    spans = table.assign(kind=[name.split()[0] for name in table["name"]])
    layers = spans[spans["kind"] == "layer"].set_index("name")
    shown = layers.loc[[f"layer {layer}" for layer in _LAYERS]]
    begin_ms, end_ms = float(shown["begin_ms"].min()) - 0.5, float(shown["end_ms"].max()) + 0.5
    fig, ax = plt.subplots(figsize=(7.0, 2.5))
    for name, row in layers.iterrows():
        _span(ax, "compute", "compute", row)
        if begin_ms < row["begin_ms"] < end_ms:
            middle = max(row["begin_ms"] + 0.1, (row["begin_ms"] + row["end_ms"]) / 2)
            ax.text(middle, 1 + _HEIGHT / 2 + 0.06, str(name).split()[1], ha="center", fontsize=6)
    for kind, lane, look in (
        ("wait", "compute", "waits"),
        ("demand", "link", "demand"),
        ("prefetch", "link", "prefetch"),
        ("trajectory", "matcher", "search"),
        ("semantic", "matcher", "search"),
    ):
        for _, row in spans[spans["kind"] == kind].iterrows():
            _span(ax, lane, look, row)
            if lane == "link" and begin_ms < row["begin_ms"] < end_ms and row["end_ms"] - row["begin_ms"] > 1:
                text = row["name"].split()[1]
                middle = (row["begin_ms"] + min(row["end_ms"], end_ms)) / 2
                ax.text(middle, -_HEIGHT / 2 - 0.22, text, ha="center", fontsize=6)
    ax.set_xlim(begin_ms, end_ms)
    ax.set_ylim(-0.7, 2.5)
    ax.set_yticks(list(_LANES.values()), list(_LANES))
    ax.set_xlabel("ms from the start of the decode step; above compute: the layer, below the link: layer.expert")
    ax.grid(visible=False)
    _legend(fig)
    details = f"{MODEL}, {EXPERT_MEMORY:.0%} of the experts, {LOAD_S * 1e3:g} ms an expert"
    provenance(fig, "live engine over a paced link", details, "data/reference/docs/timeline_measured.csv")
    return fig


def _span(ax: "Axes", lane: str, look: str, row: "pd.Series") -> None:
    face, hatch = _LOOKS[look]
    height = _HEIGHT * (0.5 if look == "waits" else 1)
    bottom = _LANES[lane] - _HEIGHT / 2
    ax.broken_barh(
        [(row["begin_ms"], row["end_ms"] - row["begin_ms"])],
        (bottom, height),
        facecolor=face,
        hatch=hatch,
        edgecolor="#000000",
        linewidth=0.4,
    )


def _legend(fig: "Figure") -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=face, hatch=hatch, edgecolor="#000000", linewidth=0.4, label=_LABELS[look])
        for look, (face, hatch) in _LOOKS.items()
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=5, fontsize=6.5, columnspacing=1.0)
