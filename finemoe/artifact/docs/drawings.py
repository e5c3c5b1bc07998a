"""The drawings of the documentation's pages: `python -m finemoe.artifact.docs.drawings` writes docs/images/*.svg.

Everything is drawn from files in data/, so that the same libraries give the same bytes. `--record` measures the timeline anew
first, with the live engine on this machine.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finemoe.artifact.docs.drawings_chats import CHATS, chats_drawing
from finemoe.artifact.docs.drawings_maps import maps_drawing, methods_drawing, search_drawing
from finemoe.artifact.docs.drawings_timeline import TIMELINE, record_timeline, timeline_drawing
from finemoe.artifact.plotting import use_style
from finemoe.files import atomic_path
from finemoe.paths import DATA, REFERENCE_FIGURES, ROOT
from finemoe.traces import RoutingTrace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES = ROOT / "docs" / "images"
TRACE = DATA / "traces" / "qwen-mini-40x32.trace"


def draw_all(folder: Path = IMAGES) -> list[Path]:
    """Draw every image of the documentation.

    Returns:
        The files written.
    """
    import matplotlib.pyplot as plt
    import pandas as pd

    use_style()
    trace = RoutingTrace.load(TRACE)
    figures = {
        "expert_maps": maps_drawing(trace),
        "search": search_drawing(trace),
        "fine_and_coarse": methods_drawing(pd.read_csv(REFERENCE_FIGURES / "f4.csv")),
        "timeline": timeline_drawing(pd.read_csv(TIMELINE)),
        "chats": chats_drawing(pd.read_csv(CHATS)),
    }
    paths = [_save(figure, folder / f"{name}.svg") for name, figure in figures.items()]
    plt.close("all")
    return paths


def _save(figure: "Figure", path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})
    return path


def main(record: Annotated[bool, typer.Option("--record", help="measure the timeline anew first")] = False) -> None:
    """Write docs/images/*.svg."""
    if record:
        record_timeline()
    for path in draw_all():
        typer.echo(f"{path.relative_to(ROOT)}")


if __name__ == "__main__":
    typer.run(main)
