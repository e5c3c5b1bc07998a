"""The documentation's drawings: made from files in data/, the same bytes each time, and those that are shipped."""

from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from finemoe.artifact.docs.drawings import IMAGES, draw_all
from finemoe.artifact.docs.drawings_timeline import last_step


@pytest.mark.slow
def test_drawings_are_the_shipped_ones_byte_for_byte(tmp_path: Path) -> None:
    drawn = draw_all(tmp_path)

    assert {path.name for path in drawn} == {path.name for path in IMAGES.glob("*.svg")}
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
