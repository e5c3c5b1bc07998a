"""The figure of one measured machine, with what was predicted; panels without measurements say so."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from finemoe.artifact.machines.aims import models_of
from finemoe.artifact.machines.axes import POLICIES, QUANTITIES, look_of, say
from finemoe.artifact.machines.cells import cells_table, foretold_table
from finemoe.artifact.machines.foretold import read_foretold
from finemoe.artifact.machines.machine_panels import draw_machine
from finemoe.artifact.machines.measured import NOT_YET, Measured
from finemoe.artifact.machines.model_panels import ModelPanels, draw_foretold
from finemoe.artifact.plotting import provenance, use_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PREDICTED = f"predicted, {NOT_YET}"
_ALIKE = 0.10  # relative difference below which predictions look the same in a panel


@dataclass(frozen=True)
class _Row:
    """A row of panels: its title, the number of panels, and the function that draws them."""

    title: str
    num_panels: int
    draw: Callable[[list["Axes"]], None]


def measured_figure(machine: Measured | None, cards: pd.DataFrame) -> "Figure":
    """The machine's link and overhead, its models' cells and their predictions; without a GPU, the predictions for the cards.

    Args:
        machine: None if nothing was measured.
        cards: as returned by `machines.foretold.read_all_foretold`.
    """
    import matplotlib.pyplot as plt

    use_style()
    rows = list(_rows_of(machine)) + list(_rows_of_cards(machine, cards)) or [_Row("", 1, lambda axes: say(axes[0], NOT_YET))]
    heights = [2.2 for _ in rows]
    fig = plt.figure(figsize=(7.2, 0.5 + sum(heights)))
    for row, place in zip(rows, fig.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0], strict=True):
        place.suptitle(row.title, x=0.01, ha="left", fontsize=8.5, fontweight="bold")
        widths = [1.7, 1, 1] if row.num_panels == 3 else None  # TPOT comes first, and its systems need the width
        row.draw(list(place.subplots(1, row.num_panels, squeeze=False, width_ratios=widths)[0]))
    fig.legend(handles=list(_legend(machine, cards)), loc="outside upper center", ncols=4, columnspacing=1.2)
    _provenance(fig, machine)
    return fig


def _rows_of(machine: Measured | None) -> Iterator[_Row]:
    if machine is None:
        return
    yield _Row(_title(machine), 4, lambda axes: draw_machine(axes, machine))
    cells, predicted, compared = cells_table(machine), read_foretold(machine), foretold_table(machine)
    for model in models_of(machine):
        mine = ModelPanels(*(table[table.model == model] for table in (cells, predicted, compared, machine.tables["baselines"])))
        yield _Row(model, 3, mine.draw_cells)
        if len(mine.compared):
            yield _Row(f"{model}: prediction for this card less measurement", 3, mine.draw_errors)


def _rows_of_cards(machine: Measured | None, cards: pd.DataFrame) -> Iterator[_Row]:
    """Predictions for each model; cards with nearly equal predictions share a row, in which the first one is drawn."""
    if machine is None or not machine.is_gpu:
        for model, part in cards.groupby("model", sort=False):
            for names in _alike(part):
                title = f"{names[0]}, {model}: {PREDICTED}"
                if len(names) > 1:
                    title = f"{model}, {' and '.join(names)}, which differ by less than {_ALIKE:.0%}:\n{PREDICTED}"
                yield _Row(title, 3, partial(draw_foretold, predicted=part[part.card == names[0]]))


def _alike(cards: pd.DataFrame) -> list[list[str]]:
    """Groups of cards with nearly equal predictions for one model."""
    groups: list[list[str]] = []
    for name in dict.fromkeys(cards.card):
        mine = _values(cards, name)
        for group in groups:
            theirs = _values(cards, group[0])
            if mine.index.equals(theirs.index) and bool(((mine - theirs).abs() <= _ALIKE * theirs.abs()).all(axis=None)):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def _values(cards: pd.DataFrame, card: str) -> pd.DataFrame:
    return cards[cards.card == card].set_index(["policy", "expert_memory"])[list(QUANTITIES)].astype(float).sort_index()


def _title(machine: Measured) -> str:
    return machine.title if machine.is_gpu else f"{machine.title}: {NOT_YET}"


def _legend(machine: Measured | None, cards: pd.DataFrame) -> Iterator[Any]:
    from matplotlib.lines import Line2D

    is_gpu, measured = machine is not None and machine.is_gpu, [] if machine is None else list(machine.tables["requests"].policy)
    named = set(measured) if is_gpu and measured else {*measured, *cards.policy}
    for policy in POLICIES:
        if policy in named:
            yield Line2D([], [], **look_of(policy))
    black: dict[str, Any] = {"color": "black", "linestyle": ""}
    if len(cards):
        yield Line2D([], [], marker="o", markerfacecolor="white", label="hollow: predicted beforehand", **black)
    if machine is not None and len(machine.tables["predictions"]):
        yield Line2D([], [], color="black", linestyle=":", label="limit of FineMoE's decisions")
    if machine is not None and len(machine.tables["baselines"]):
        yield Line2D([], [], marker="p", markersize=7, label="Accelerate (not ours)", **black)


def _provenance(fig: "Figure", machine: Measured | None) -> None:
    if machine is None:
        provenance(fig, "simulated", NOT_YET)
        return
    level = "random weights, replayed routing" if machine.is_gpu else "memory copies as links; rows of cards: simulated"
    cut = ["↑: beyond the axis, with its value"] * bool(len(machine.tables["baselines"]))
    provenance(fig, "measured", machine.title, level, "whiskers: extremes", *cut)
