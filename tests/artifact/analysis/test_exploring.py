"""The explorer: what a slider changes, and what its panel shows while it is at work."""

import pytest

from finemoe.artifact.analysis.exploring import FASTEST, FIRST_SYSTEMS, SLOWEST, SYSTEMS, Explorer
from finemoe.artifact.analysis.exploring_panel import Panel, explore, traces_found
from finemoe.errors import FinemoeError
from finemoe.paths import DATA, HEADLESS
from finemoe.simulation.synthetic import Recipe, synthetic_trace

pytestmark = pytest.mark.timeout(300)  # hundreds of replays

MIXTRAL = synthetic_trace(Recipe(0.2, 0.3, 0.4, 8), 32, 8, 2, num_requests=10, tokens_per_request=8)
START = {"expert_memory": 0.25, "link_gb_per_s": 26.0, "prefetch_distance": 3, "store_capacity": 1000}
OPTIONS = ("6x-rtx3090", 1, 0)


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "a-model-a-dataset.trace"
    MIXTRAL.save(path)
    return path


@pytest.fixture
def panel(trace, monkeypatch):
    monkeypatch.delenv(HEADLESS, raising=False)
    return Panel({"mine": trace, "again": trace}, Explorer(MIXTRAL, *OPTIONS), *OPTIONS)


def test_a_slider_moves_what_it_names():
    explorer = Explorer(MIXTRAL, "6x-rtx3090", num_requests=3)
    slow, fast = (explorer.replay(**START | {"link_gb_per_s": rate}).set_index("system") for rate in (1.0, 100.0))
    assert (fast.tpot_ms < slow.tpot_ms).all()
    more = explorer.replay(**START | {"expert_memory": 0.75}).set_index("system")
    assert (more.hit_rate > explorer.replay(**START).set_index("system").hit_rate).all()


def test_no_setting_leaves_the_axis():
    explorer = Explorer(MIXTRAL, "6x-rtx3090", num_requests=1)
    low, high = explorer.tpot_limits_ms()
    for setting in (SLOWEST, FASTEST):
        tpot_ms = explorer.replay(**vars(setting), systems=explorer.systems()).tpot_ms
        assert 0.95 * low < tpot_ms.min() <= tpot_ms.max() < 1.2 * high


def test_only_systems_that_the_trace_can_serve_are_offered():
    """Synthetic routing holds neither embeddings nor routers applied ahead."""
    offered = Explorer(MIXTRAL, "6x-rtx3090", num_requests=1).systems()
    assert set(FIRST_SYSTEMS) <= set(offered) < set(SYSTEMS)
    assert "Mixtral-Offloading" not in offered


def test_sliders_are_for_people(trace, monkeypatch):
    """A front end gets controls; the pipeline, which waits for an answer that widgets can swallow, a picture."""
    monkeypatch.setenv(HEADLESS, "1")
    assert type(explore(trace, *OPTIONS)).__name__ == "Figure"
    monkeypatch.delenv(HEADLESS)
    left, right = explore(trace, *OPTIONS).children[0].children
    assert [control.value for control in (left.children[1], *right.children[:4])] == [FIRST_SYSTEMS, 0.25, 26.0, 3, 1000]


def test_a_changed_slider_changes_the_picture(panel):
    before = bytes(panel.image.value)
    assert bytes(before).startswith(b"\x89PNG")
    panel.controls["link_gb_per_s"].value = 4.0
    assert bytes(panel.image.value) != before
    assert "up to date" in panel.status.value


def test_while_it_works_the_picture_is_pale_and_a_bar_moves(panel, monkeypatch):
    seen = []
    report = Panel._report

    def note(self, name):
        report(self, name)
        seen.append((name, self.bar.value, self.bar.layout.visibility, "finemoe-busy" in self.image._dom_classes))

    monkeypatch.setattr(Panel, "_report", note)
    panel.controls["expert_memory"].value = 0.5
    assert [name for name, *_ in seen] == [*FIRST_SYSTEMS, "drawing"]
    assert [value for _, value, *_ in seen] == [1, 2, 3, 4] == [*range(1, panel.bar.max + 1)]
    assert all(visibility == "visible" and is_pale for *_, visibility, is_pale in seen)
    assert panel.bar.layout.visibility == "hidden"
    assert "finemoe-busy" not in panel.image._dom_classes


def test_systems_and_traces_can_be_chosen(panel):
    before = bytes(panel.image.value)
    panel.controls["systems"].value = ("on-demand (LRU)", "Belady (on demand)")
    chosen = bytes(panel.image.value)
    assert chosen != before
    panel.controls["trace"].value = "again"
    assert panel.controls["systems"].value == ("on-demand (LRU)", "Belady (on demand)")
    assert "up to date" in panel.status.value


def test_what_is_refused_is_said_in_the_panel(panel, monkeypatch):
    before = bytes(panel.image.value)
    panel.controls["systems"].value = ()
    assert "choose at least one system" in panel.status.value

    def refused(*_, **__):
        raise FinemoeError("the machine does not have the memory")

    monkeypatch.setattr(Explorer, "replay", refused)
    panel.controls["systems"].value = ("oracle",)
    assert "the machine does not have the memory" in panel.status.value
    assert bytes(panel.image.value) == before


def test_the_shipped_trace_is_found():
    assert traces_found()["data/traces/qwen-mini-40x32.trace"] == DATA / "traces" / "qwen-mini-40x32.trace"
