"""Routing for the tour: the pipeline's where it is, else a small recording, or one clear line."""

import pytest

from finemoe.artifact.pipeline import tour
from finemoe.artifact.pipeline.tour import recorded
from finemoe.errors import FinemoeError
from finemoe.paths import DATA

SHIPPED = "data/traces/qwen-mini-40x32.trace"


@pytest.fixture
def recordings(tmp_path, monkeypatch):
    """Recordings are noted and not made."""
    made = []

    def note(model, dataset, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        made.append((model, dataset))

    monkeypatch.setattr(tour, "ROOT", tmp_path)
    monkeypatch.setattr(tour, "_SMALL", tmp_path / "small")
    monkeypatch.setattr(tour, "_record", note)
    return made


def test_what_is_there_is_taken():
    assert recorded(SHIPPED) == DATA / "traces" / "qwen-mini-40x32.trace"


def test_what_is_missing_is_recorded_once(recordings, capsys):
    first = recorded("results/traces/mixtral-mini-questions.trace")
    assert recordings == [("mixtral-mini", "questions")]
    assert first.name == "mixtral-mini-questions.trace"
    assert "`make reproduce` makes it" in capsys.readouterr().out
    assert recorded("results/traces/mixtral-mini-questions.trace") == first
    assert len(recordings) == 1
    assert "small/mixtral-mini-questions.trace" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mine", "mixtral-mini-nothing", "nothing-questions"])
def test_an_unknown_name_is_one_clear_line(recordings, name):
    with pytest.raises(FinemoeError, match="no such trace; record one with `finemoe record`") as error:
        recorded(f"results/traces/{name}.trace")
    assert "\n" not in str(error.value)
    assert recordings == []
