"""Every series of an advice is in its figure, with its values, interval and marks; what was not timed is not drawn."""

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex

from finemoe.advice.systems import ALL, ON_DEMAND, PREFETCHING, RULES
from finemoe.artifact.advice.figures import drawings
from finemoe.artifact.advice.looks import CAUSAL_RULES, rule_look, system_look
from finemoe.artifact.advice.memory_axis import GIB
from finemoe.artifact.advice.memory_figures import hit_rate_figure, prefetching_figure, time_figure
from finemoe.artifact.advice.routing_figures import recall_figure, reuse_figure, sensitivity_figure, usage_figure
from finemoe.artifact.plotting import RULE_NAMES, use_style
from tests.artifact.advice.made_up import CHOSEN, EXPERT_BYTES, SIZES, SYSTEMS, make_advice

TIMED = ["times", "prefetching", "sensitivity"]


@pytest.fixture(autouse=True)
def _figures():
    use_style()
    yield
    plt.close("all")


def named(axis) -> dict:
    handles, labels = axis.get_legend_handles_labels()
    return dict(zip(labels, handles, strict=True))


def texts_of(axis) -> set[str]:
    return {text.get_text().strip() for text in axis.texts}


def test_times_of_every_system_are_drawn_where_they_are():
    advice = make_advice()
    left, right = time_figure(advice).axes[:2]
    assert {"on-demand (LRU)", "on-demand (LFU)", "on-demand (LFRU)", "on-demand (next use)"} <= set(named(left))
    assert {"ProMoE", "MoE-Infinity", "FineMoE", "finemoe-plus", "recommended"} <= set(named(right))
    assert "recommended" not in named(left)
    for axis, names in ((left, ON_DEMAND), (right, PREFETCHING)):
        assert {"perfect predictor", "all experts resident", "does not fit"} <= set(named(axis))
        for name in set(names) & set(SYSTEMS):
            line = named(axis)[name]
            rows = sorted((row for row in advice.times if row["system"] == name), key=lambda row: row["slots"])
            assert line.get_ydata() == pytest.approx([1000 * row["tpot_s"] for row in rows])
            assert line.get_xdata() == pytest.approx([row["slots"] * EXPERT_BYTES / GIB for row in rows])
        assert len(named(axis)) <= 9
        assert {"cliff", "knee"} <= texts_of(axis)


def test_the_star_is_the_recommendation_and_all_data_are_in_view():
    advice = make_advice()
    axes = time_figure(advice).axes[:2]
    star = named(axes[1])["recommended"]
    assert (star.get_xdata()[0], star.get_ydata()[0]) == pytest.approx(
        (CHOSEN * EXPERT_BYTES / GIB, 1000 * advice.recommendation["row"]["tpot_s"])
    )
    low, high = axes[0].get_ylim()
    assert axes[1].get_ylim() == (low, high)
    assert low < min(1000 * row["tpot_s"] for row in advice.times)
    assert high > max(1000 * row["high"] for row in advice.times)


def test_one_size_is_a_point_and_everything_resident_a_level():
    advice = make_advice()
    rows = [row for row in advice.times if row["slots"] == CHOSEN or row["system"] == "everything resident"]
    axis = time_figure(make_advice(times=rows)).axes[0]
    assert list(named(axis)["on-demand (LRU)"].get_xdata()) == pytest.approx([CHOSEN * EXPERT_BYTES / GIB])
    assert named(axis)["Belady (knows the future)"].get_marker() == "_"  # else it would not be seen
    assert list(named(axis)["all experts resident"].get_xdata()) == [0, 1]  # in shares of the width


def test_what_does_not_fit_is_shaded_from_where_memory_ends():
    axis = time_figure(make_advice()).axes[0]
    patch = named(axis)["does not fit"]
    assert patch.get_hatch()  # bands of intervals have none
    assert patch.get_x() == pytest.approx(23 * EXPERT_BYTES / GIB)
    assert patch.get_x() + patch.get_width() == pytest.approx(axis.get_xlim()[1])
    roomy = make_advice()
    roomy.machine["room_bytes"] = 1 << 40
    assert "does not fit" not in named(time_figure(roomy).axes[0])


def test_intervals_are_bands_and_a_single_request_has_none():
    for intervals, count in ((True, len(ON_DEMAND) + 2), (False, 0)):  # Belady and the oracle, too
        axis = time_figure(make_advice(intervals=intervals)).axes[0]
        assert len(axis.collections) == count


def test_hit_rates_of_every_rule():
    advice = make_advice()
    axis = hit_rate_figure(advice).axes[0]
    lines = named(axis)
    assert set(lines) == {*(RULE_NAMES[rule] for rule in CAUSAL_RULES), "Belady (knows the future)", "does not fit"}
    assert to_hex(lines["Belady (knows the future)"].get_color()) == "#000000"
    rows = [row for row in advice.hit_rates if row["rule"] == "lfru" and row["slots"] >= SIZES[0]]
    assert lines["LFRU"].get_ydata() == pytest.approx([100 * row["hit_rate"] for row in rows])
    verticals = {
        line.get_xdata()[0] for line in axis.get_lines() if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2
    }
    assert sorted(verticals) == pytest.approx([8 * EXPERT_BYTES / GIB, 16 * EXPERT_BYTES / GIB])


def test_without_a_size_memory_is_a_share():
    axis = hit_rate_figure(make_advice(machine=False, sizes_known=False)).axes[0]
    assert axis.get_xlabel() == "expert memory (% of all experts)"
    assert named(axis)["LRU"].get_xdata()[-1] == pytest.approx(100)


def test_cliff_and_knee_out_of_view_are_not_marked():
    advice = make_advice(cliff={"cycle": 1, "hit_rate_at": 0.1, "hit_rate_before": 0.0})
    assert texts_of(time_figure(advice).axes[0]) == {"knee"}


@pytest.mark.parametrize("intervals", [True, False])
def test_prefetching_says_whether_its_interval_excludes_one(intervals):
    advice = make_advice(intervals=intervals)
    axis = prefetching_figure(advice).axes[0]
    ratios = [row["ratio"] for row in advice.prefetching]
    assert any(
        list(line.get_ydata()) == pytest.approx(ratios) for line in axis.get_lines() if len(line.get_ydata()) == len(SIZES)
    )
    assert any(list(line.get_ydata()) == [1, 1] for line in axis.get_lines())
    full = sum(len(line.get_xdata()) for line in axis.get_lines() if line.get_label() in PREFETCHING)
    assert full == (len(SIZES) if intervals else 0)
    assert ("difference is not shown" in named(axis)) is not intervals


def test_recalls_of_every_predictor_and_by_distance():
    left, right = recall_figure(make_advice()).axes
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert labels == [
        *("finemoe-plus", "FineMoE, 1 layer ahead", "ProMoE, 3 layers ahead"),
        *("most used, in hindsight", "the token before", "chance"),
    ]
    line = named(right)["FineMoE"]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2, 3], pytest.approx([60, 59, 58]))
    assert list(named(right)["ProMoE"].get_ydata()) == pytest.approx([55.5])
    assert list(named(right)["chance"].get_ydata()) == pytest.approx([25, 25])


def test_usage_working_set_and_reuse():
    shares, numbers, windows = usage_figure(make_advice()).axes
    assert list(named(shares)["most used 25 %"].get_ydata()) == pytest.approx([43, 44, 45, 46])
    assert list(named(shares)["most used 10 %"].get_ydata()) == pytest.approx([21, 22, 23, 24])
    assert list(named(numbers)["used at all"].get_ydata()) == [8, 7, 6, 5]
    assert named(numbers)["effective number"].get_ydata()[0] == pytest.approx(5.657)
    assert list(named(windows)["mean of the layers"].get_ydata()) == [2.5, 5.25, 7.125]
    assert "a whole request" in named(windows)
    reuse = reuse_figure(make_advice()).axes[0]
    assert list(named(reuse)["this trace"].get_ydata()) == pytest.approx([31, 47, 62, 83])
    chance = named(reuse)["experts drawn\nat random"].get_ydata()
    assert list(chance) == pytest.approx([25, 43.75, 68.359375, 100 - 100 * 0.75**8])


def test_sensitivity_has_a_row_for_every_change():
    advice = make_advice()
    axis = sensitivity_figure(advice).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == [row["change"] for row in advice.sensitivity]
    points = {(round(line.get_xdata()[0], 3), line.get_ydata()[0]) for line in axis.get_lines() if len(line.get_xdata()) == 1}
    assert points == {
        (round(1000 * row[name], 3), place)
        for place, row in enumerate(advice.sensitivity)
        for name in ("on_demand_s", "prefetching_s")
    }
    assert "does not fit" in named(axis)


def test_a_trace_that_drives_no_prefetching_system():
    """One panel of times, no prefetching figure, and one series in the sensitivity."""
    advice = make_advice()
    rows = [row for row in advice.times if row["system"] not in PREFETCHING]
    chosen = advice.recommendation | {"prefetching": None, "system": "on-demand (LRU)", "row": rows[0]}
    changed = [row | {"prefetching_s": float("nan"), "ratio": float("nan")} for row in advice.sensitivity]
    alone = make_advice(times=rows, prefetching=[], recommendation=chosen, sensitivity=changed)
    assert [drawing.name for drawing in drawings(alone)] == ["times", "hit_rates", "recalls", "usage", "reuse", "sensitivity"]
    assert [axis.get_title() for axis in time_figure(alone).axes] == ["loading on demand"]
    assert "finemoe-plus" not in named(sensitivity_figure(alone).axes[0])


def test_without_a_machine_nothing_timed_is_drawn():
    names = [drawing.name for drawing in drawings(make_advice())]
    assert names == ["times", "hit_rates", "prefetching", "recalls", "usage", "reuse", "sensitivity"]
    assert [drawing.name for drawing in drawings(make_advice(machine=False))] == [name for name in names if name not in TIMED]


def test_no_two_of_a_panel_look_alike():
    for looks in (
        [rule_look(name) for name in RULES],
        [system_look(name) for name in ON_DEMAND],
        [system_look(name) for name in PREFETCHING],
    ):
        assert len({look["color"] for look in looks}) == len({look["marker"] for look in looks}) == len(looks)
    assert len({system_look(name)["label"] for name in ALL}) == len(ALL)
    assert system_look("on-demand (LFRU)")["color"] == rule_look("lfru")["color"]
