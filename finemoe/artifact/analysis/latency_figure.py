"""Styles and names of systems, the same in every figure that shows several."""

from collections.abc import Mapping
from typing import Any

from finemoe.artifact.analysis.latency import LATENCY_SYSTEMS, OURS
from finemoe.artifact.plotting import PALETTE, series_styles
from finemoe.simulation.systems import SYSTEMS

_HATCHES = {"FineMoE": "", "on-demand (LRU)": "....", "oracle": "xxxx", "No-offload": ""}
_NOT_IN_THE_PAPER = {"finemoe-plus": {"color": PALETTE["finemoe-plus"], "marker": "*", "hatch": ""}}
_GREYS = {"on-demand (LRU)": "#D0D0D0", "oracle": "white", "No-offload": "#6E6E6E"}
# Colour, dashes and marker of lines that bound the paper's systems; white and light grey are invisible as lines.
_BOUND_LINES = {"on-demand (LRU)": ("#6E6E6E", ":", "o"), "oracle": ("black", "--", ""), "No-offload": ("black", "-.", "")}
_DASHES: dict[str, Any] = {
    "DeepSpeed-Inference": (0, (4, 1.5)),
    "Mixtral-Offloading": (0, (7, 2)),
    "ProMoE": (0, (5, 1, 1, 1)),
    "MoE-Infinity": (0, (3, 1, 1, 1, 1, 1)),
}
_MARKER_SIZES = {"finemoe-plus": 6.0, "MoE-Infinity": 5.0}  # stars and crosses have less area than other markers


def system_looks() -> Mapping[str, dict[str, Any]]:
    """Colour, marker and hatch of every system, the same in every figure; bounds are grey."""
    look, hatches = series_styles(list(SYSTEMS)), ("//", "\\\\", "--", "||")
    names = list(LATENCY_SYSTEMS)
    return {
        name: {
            "color": _GREYS.get(name) or look["palette"][name],
            "marker": look["markers"].get(name, ("s", "X", "*")[index % 3]),
            "hatch": _HATCHES.get(name, hatches[index % 4]),
        }
        for index, name in enumerate(names)
    } | _NOT_IN_THE_PAPER


def line_look(system: str) -> dict[str, Any]:
    """Keywords of `Axes.plot` for a system's line; in grey, dashes and markers tell the systems apart."""
    look = system_looks()[system]
    colour, dash, marker = _BOUND_LINES.get(system, (look["color"], _DASHES.get(system, "-"), look["marker"]))
    size, width = _MARKER_SIZES.get(system, 3.5), 2.0 if system == "FineMoE" else 1.2
    of_line = {"color": colour, "linestyle": dash, "linewidth": width}
    return of_line | {"marker": marker, "markersize": size, "label": shown_name(system)}


def shown_name(system: str) -> str:
    """A system's name in a legend, with a note if it is not one of the paper's systems."""
    return f"{system} (not in the paper)" if system in OURS else system
