"""Sliders, a choice of trace and systems, and the figure that they change (notebooks/tour/4_explore.ipynb)."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from finemoe.artifact.analysis.exploring import FIRST_SYSTEMS, SYSTEMS, Explorer, Setting, explore_figure
from finemoe.errors import FinemoeError
from finemoe.paths import DATA, RESULTS, ROOT, is_headless
from finemoe.traces import RoutingTrace

_CAPACITIES = [60, 125, 250, 500, 1000, 2000]
_STYLE = "<style>.finemoe-busy {opacity: 0.35} .finemoe-panel img {max-width: 100%}</style>"
_READY, _BUSY = "#2E7D32", "#B26A00"


def traces_found() -> dict[str, Path]:
    """Recorded routing by name: recorded by the pipeline, recorded by hand, and shipped with the project."""
    folders = (RESULTS / "traces", *sorted(RESULTS.glob("*/traces")), RESULTS / "by-hand" / "small", DATA / "traces")
    paths = [path for folder in folders for path in sorted(folder.glob("*.trace"))]
    return {str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path): path for path in paths}


def explore(trace: Path, testbed: str, num_requests: int, seed: int = 0) -> Any:
    """The panel, or the figure of the first setting if the notebook runs without a front end.

    Args:
        trace: the trace shown first.
        testbed, num_requests, seed: as in `Explorer`.
    """
    explorer = Explorer(RoutingTrace.load(trace), testbed, num_requests, seed)
    if is_headless():
        table = explorer.replay(**vars(Setting()))
        return explore_figure(table, explorer.title, explorer.tpot_limits_ms())
    name = str(trace.relative_to(ROOT)) if trace.is_relative_to(ROOT) else str(trace)
    return Panel({name: trace} | traces_found(), explorer, testbed, num_requests, seed).widget


class Panel:
    """Controls above, the figure below. While a setting is replayed, the figure is pale and a progress bar moves.

    Args:
        traces: paths by name; the first is the explorer's trace.
        explorer: explorer of the first trace.
        testbed, num_requests, seed: as in `Explorer`.
    """

    def __init__(self, traces: Mapping[str, Path], explorer: Explorer, testbed: str, num_requests: int, seed: int) -> None:
        from ipywidgets import HTML, HBox, Image, IntProgress, VBox

        self._traces, self._options = traces, (testbed, num_requests, seed)
        self._explorer, self._before = explorer, pd.DataFrame()
        self.controls = _controls(traces, explorer.systems())
        self.status, self.bar, self.image = HTML(), IntProgress(layout={"width": "260px"}), Image(format="png")
        trace, systems, *sliders = self.controls.values()
        left, right = VBox([trace, systems]), VBox([*sliders, HBox([self.bar, self.status])])
        self.widget = VBox([HBox([left, right]), self.image, HTML(_STYLE)])
        self.widget.add_class("finemoe-panel")
        for control in self.controls.values():
            control.observe(self._changed, "value")
        self._show()

    def _changed(self, change: Any) -> None:
        if change["owner"] is self.controls["trace"]:
            with self._working("reading the trace", 1):
                self._explorer = Explorer(RoutingTrace.load(self._traces[change["new"]]), *self._options)
            self._before = pd.DataFrame()
            self._offer_systems()
        self._show()

    def _offer_systems(self) -> None:
        """Offer only systems that the trace supports, and keep the selection as far as possible."""
        control, offered = self.controls["systems"], self._explorer.systems()
        kept = [name for name in control.value if name in offered]
        control.unobserve(self._changed, "value")
        control.options = offered
        control.value = kept or [name for name in FIRST_SYSTEMS if name in offered]
        control.observe(self._changed, "value")

    def _show(self) -> None:
        """Replay the current settings, and draw the result over the previous one."""
        values = {name: control.value for name, control in self.controls.items() if name != "trace"}
        systems = values.pop("systems")
        if not systems:
            self.status.value = "<b>choose at least one system</b>"
            return
        with self._working("replaying", len(systems) + 1):
            limits = self._explorer.tpot_limits_ms()
            table = self._explorer.replay(**values, systems=systems, report=self._report)
            self._report("drawing")
            self.image.value = _png(explore_figure(table, self._explorer.title, limits, self._before_of(table)))
            self._before = table

    def _before_of(self, table: pd.DataFrame) -> pd.DataFrame | None:
        """The previous table, if it contains any of these systems."""
        if self._before.empty:
            return None
        return self._before[self._before.system.isin(table.system)]

    def _report(self, name: str) -> None:
        self.bar.value += 1
        self.status.value = f'<span style="color:{_BUSY}">{name} …</span>'

    @contextmanager
    def _working(self, what: str, steps: int) -> Iterator[None]:
        """Show that work is in progress and, at the end, that it is done or why it was refused."""
        self.bar.max, self.bar.value = max(1, steps), 0
        self.bar.layout.visibility = "visible"
        self.status.value = f'<span style="color:{_BUSY}">{what} …</span>'
        self.image.add_class("finemoe-busy")
        try:
            yield
            self.status.value = f'<span style="color:{_READY}">✓ up to date</span>'
        except FinemoeError as error:
            self.status.value = f"<b>{error}</b>"
        finally:
            self.bar.layout.visibility = "hidden"
            self.image.remove_class("finemoe-busy")


def _controls(traces: Mapping[str, Path], systems: list[str]) -> dict[str, Any]:
    from ipywidgets import Dropdown, FloatLogSlider, FloatSlider, IntSlider, SelectionSlider, SelectMultiple

    start, wide = Setting(), {"width": "410px"}
    look: dict[str, Any] = {"continuous_update": False, "style": {"description_width": "130px"}, "layout": wide}
    chosen: dict[str, Any] = {"style": look["style"], "layout": wide}
    shown = [name for name in FIRST_SYSTEMS if name in systems]
    return {
        "trace": Dropdown(options=list(traces), value=next(iter(traces)), description="trace", **chosen),
        "systems": SelectMultiple(options=systems, value=shown, rows=len(SYSTEMS), description="systems", **chosen),
        "expert_memory": FloatSlider(start.expert_memory, min=0.05, max=1, step=0.05, description="memory (share)", **look),
        "link_gb_per_s": FloatLogSlider(start.link_gb_per_s, min=0, max=2.4, step=0.1, description="link (GB/s)", **look),
        "prefetch_distance": IntSlider(start.prefetch_distance, min=1, max=8, description="distance d (layers)", **look),
        "store_capacity": SelectionSlider(
            options=_CAPACITIES, value=start.store_capacity, description="capacity C (maps)", **look
        ),
    }


def _png(fig: Any) -> bytes:
    import matplotlib.pyplot as plt

    held = io.BytesIO()
    with plt.rc_context({"savefig.bbox": "standard"}):  # the whole canvas, so that all figures have the same margins
        fig.savefig(held, format="png", dpi=110)
    plt.close(fig)
    return held.getvalue()
