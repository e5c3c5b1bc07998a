"""The documentation's drawings: made from files in data/, the same bytes each time, and those that are shipped."""

from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from finemoe.artifact.docs.drawings import IMAGES, draw_all
from finemoe.artifact.docs.drawings_timeline import TIMELINE, last_step, layer_states
from finemoe.paths import ROOT


def test_the_page_describes_the_layers_of_the_recorded_step() -> None:
    import pandas as pd

    states = layer_states(pd.read_csv(TIMELINE))
    of = {kind: [layer for layer, state in states.items() if state == kind] for kind in ("hit", "late", "miss")}
    page = (ROOT / "docs" / "engine.md").read_text(encoding="utf-8")

    assert [*states] == list(range(8, 20))
    assert (of["hit"], of["miss"]) == ([11, 15, 16, 18], [12, 17])
    assert {8, 9, 10} <= set(of["late"])
    for sentence in ("Layers 11, 15, 16 and 18 hit", "Layers 12 and 17 miss", "In layers 8, 9 and 10 the prefetch was right"):
        assert sentence in page, f"engine.md describes another recording: {states}"


@pytest.mark.slow
def test_drawings_are_the_shipped_ones_byte_for_byte(tmp_path: Path) -> None:
    drawn = draw_all(tmp_path)

    assert {path.stem for path in drawn} == {"expert_maps", "search", "fine_and_coarse", "timeline", "chats"}
    for path in drawn:
        assert path.read_bytes() == (IMAGES / path.name).read_bytes(), (
            f"{path.name} is out of date: python -m finemoe.artifact.docs.drawings"
        )


def test_the_last_iteration_is_kept_in_milliseconds_from_its_begin() -> None:
    def span(tid: int, name: str, ts: float, dur: float) -> dict:
        return {"ph": "X", "tid": tid, "name": name, "ts": ts, "dur": dur}

    events = [
        {"ph": "M", "tid": 0, "args": {"name": "compute"}},
        {"ph": "M", "tid": 1, "args": {"name": "link"}},
        span(0, "iteration 1", 0, 1000),
        span(0, "layer 0", 100, 200),
        span(0, "iteration 2", 5000, 2000),
        span(1, "demand 0.3", 5500, 250),
    ]

    table = last_step(events)

    assert table["name"].tolist() == ["iteration 2", "demand 0.3"]
    assert table.loc[1].tolist() == ["link", "demand 0.3", 0.5, 0.75]
