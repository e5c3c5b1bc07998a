"""Styles of rules, systems and limits: the same in every figure, and distinct in grey within a panel."""

from collections.abc import Sequence
from typing import Any

from finemoe.advice.systems import BELADY, BELADY_RULE, ORACLE, PREFETCHING, RESIDENT, RULES
from finemoe.artifact.plotting import DASHES, MARKERS, PALETTE, RULE_NAMES

RULE_OF = {  # the eviction rule of each system that loads on demand
    "on-demand (LRU)": "lru",
    "on-demand (LFU)": "lfu",
    "on-demand (LFRU)": "lfru",
    "on-demand (next use)": "next-use",
}
LIMIT_NAMES = {BELADY: "Belady (knows the future)", ORACLE: "perfect predictor", RESIDENT: "all experts resident"}
_RULE_COLOURS = {
    "lru": PALETTE["on-demand"],
    "lfu": "#56B4E9",
    "lfu-aged": "#44AA99",
    "lfru": "#117733",
    "least-stale": "#DDCC77",
    "least-stale-interval": "#AA4499",
    "next-use": "#332288",
}
_AHEAD_COLOURS = {"Mixtral-Offloading": "#D55E00", "ProMoE": "#CC79A7"}
_LIMITS: dict[str, dict[str, Any]] = {
    BELADY: {"linestyle": "--", "marker": ""},
    ORACLE: {"linestyle": (0, (1, 1.2)), "marker": ""},
    RESIDENT: {"linestyle": "-", "marker": ""},
}
CAUSAL_RULES = tuple(name for name in RULES if name != BELADY_RULE)


def rule_look(name: str) -> dict[str, Any]:
    """Style of an eviction rule, for `Axes.plot`."""
    if name == BELADY_RULE:
        return {"color": "black", "linestyle": "--", "marker": "", "label": RULE_NAMES[name]}
    return {"color": _RULE_COLOURS[name], "label": RULE_NAMES[name]} | _place(CAUSAL_RULES, name)


def system_look(name: str) -> dict[str, Any]:
    """Style of a system; limits are black, and an on-demand system looks like its rule."""
    if name in _LIMITS:
        return {"color": "black", "label": LIMIT_NAMES[name]} | _LIMITS[name]
    if name in RULE_OF:
        return rule_look(RULE_OF[name]) | {"label": name}
    colour = PALETTE[name] if name in PALETTE else _AHEAD_COLOURS[name]
    return {"color": colour, "label": name} | _place(tuple(PREFETCHING), name)


def _place(names: Sequence[str], name: str) -> dict[str, Any]:
    """Marker and dashes by position in a sequence of names."""
    place = names.index(name)
    dashes = DASHES[place % len(DASHES)]
    return {"marker": MARKERS[place % len(MARKERS)], "linestyle": (0, dashes) if dashes else "-"}
