"""One style for every figure, and one way to save it: PDF, PNG and the tidy table behind it, byte for byte reproducible."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemoe.files import atomic_path
from finemoe.paths import ROOT
from finemoe.processor import processor

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("finemoe.mplstyle")
MODEL_TITLES = {
    "mixtral-mini": "Mixtral-8x7B miniature (32×8/2)",
    "qwen-mini": "Qwen1.5-MoE miniature (24×60/4)",
    "phi-mini": "Phi-3.5-MoE miniature (32×16/2)",
    "gpt-oss-20b": "gpt-oss-20b, real (24×32/4)",
    "mixtral-8x7b": "Mixtral-8x7B, real (32×8/2)",
}
DATASET_TITLES = {"questions": "questions", "dialogues": "dialogues"}
# Eviction rules by their name in the code; `advise` and Figure 14b print the same names.
RULE_NAMES = {
    "lru": "LRU",
    "lfu": "LFU",
    "lfu-aged": "LFU with aging",
    "lfru": "LFRU",
    "least-stale": "Least-Stale",
    "least-stale-interval": "Least-Stale (intervals)",
    "next-use": "forecast of next use",
    "finemoe": "FineMoE",
    "belady": "Belady (knows the future)",
}
# Every series differs in colour, lightness, marker and dash, so that it stays readable when printed in grey.
PALETTE = {
    "fine": "#0072B2",
    "coarse": "#E69F00",
    "finemoe": "#0072B2",
    "FineMoE": "#0072B2",
    "finemoe-plus": "#661100",
    "MoE-Infinity": "#E69F00",
    "on-demand": "#8C8C8C",
    "default": "#D55E00",
    "semantic": "#56B4E9",
    "trajectory": "#0072B2",
    "sentence": "#D55E00",
    "shuffled": "#8C8C8C",
}
_BLACK = "#000000"  # reserved for bounds; no series may look like it
_MORE_COLOURS = ("#882255", "#999933", "#332288", "#AA4499", "#661100")  # used after the style's own
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
DASHES: tuple[Any, ...] = ("", (4, 1.5), (1, 1), (5, 1, 1, 1), (2, 1), (7, 2), (3, 1, 1, 1, 1, 1))
_SMALL_CHARACTERS_PER_INCH = 20.0  # in the style's font at 6 points
_FLOAT_FORMAT = "%.6g"  # more digits than any measurement has, but not enough to show rounding noise


def use_style() -> None:
    """Apply the project's Matplotlib style to the session."""
    import matplotlib.pyplot as plt

    plt.style.use(STYLE)


def model_title(slug: str) -> str:
    """Name and L×J/K of a model, for the title of a panel."""
    return MODEL_TITLES.get(slug, slug)


def series_styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Seaborn's `palette`, `markers` and `dashes` for series in this order; distinct in grey, too."""
    import matplotlib.pyplot as plt

    taken = {PALETTE[name] for name in names if name in PALETTE} | {_BLACK}
    free = [
        colour for colour in (*plt.rcParams["axes.prop_cycle"].by_key()["color"], *_MORE_COLOURS) if colour.upper() not in taken
    ]
    others = [name for name in names if name not in PALETTE]
    return {
        "palette": {name: PALETTE[name] for name in names if name in PALETTE}
        | {name: free[index % len(free)] for index, name in enumerate(others)},
        "markers": {name: MARKERS[index % len(MARKERS)] for index, name in enumerate(names)},
        "dashes": {name: DASHES[index % len(DASHES)] for index, name in enumerate(names)},
    }


def log_ticks(axis: "Axis") -> None:
    """Plain numbers at 1, 2 and 5 of every decade of a logarithmic axis (`ax.xaxis` or `ax.yaxis`), without minor ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def provenance(fig: "Figure", executor: str, *details: str) -> None:
    """Write one or two small lines under a figure: what produced it (measured, paced, simulated, recorded), and details."""
    width = int(fig.get_figwidth() * _SMALL_CHARACTERS_PER_INCH)
    fig.supxlabel(_lines([f"executor: {executor}", *details], width), fontsize=6, color="#555555", x=0.01, ha="left")


def _lines(parts: Sequence[str], width: int) -> str:
    """Join parts into lines of at most `width` characters; a part is never split."""
    lines = [parts[0]]
    for part in parts[1:]:
        longer = f"{lines[-1]} | {part}"
        lines = [*lines[:-1], longer] if len(longer) <= width else [*lines, part]
    return "\n".join(lines)


def machine() -> str:
    """A description of this machine, for measured figures."""
    return processor()


def save_figure(fig: "Figure", table: "pd.DataFrame", stem: str | Path) -> None:
    """Write `stem`.pdf, .png and .csv, atomically and reproducibly.

    Args:
        fig: the figure.
        table: the tidy data behind the figure; floats are written with six significant digits.
        stem: path without suffix; a relative path starts at the repository root.
    """
    stem = ROOT / stem
    with atomic_path(stem.with_name(f"{stem.name}.pdf")) as path:
        fig.savefig(path, metadata={"CreationDate": None, "Producer": None, "Creator": None})
    with atomic_path(stem.with_name(f"{stem.name}.png")) as path:
        fig.savefig(path, metadata={"Software": None})
    save_table(table, stem.with_name(f"{stem.name}.csv"))


def save_table(table: "pd.DataFrame", path: str | Path) -> None:
    """Write a table as CSV with a fixed number format, so that equal results give equal bytes."""
    with atomic_path(ROOT / path) as temporary:
        table.to_csv(temporary, index=False, float_format=_FLOAT_FORMAT, lineterminator="\n")
