"""How systems look: what is not in the paper is marked as such, and no two look alike, in grey too."""

import matplotlib

matplotlib.use("agg")

import matplotlib.colors as colors

from finemoe.artifact.analysis.latency import BOUNDS, OURS, SHOWN_SYSTEMS
from finemoe.artifact.analysis.latency_figure import line_look, shown_name, system_looks
from finemoe.artifact.plotting import use_style


def test_a_name_says_what_is_not_in_the_paper():
    marked = [name for name in SHOWN_SYSTEMS if shown_name(name) == f"{name} (not in the paper)"]
    assert marked == list(OURS)
    assert [shown_name(name) for name in SHOWN_SYSTEMS if name not in OURS] == [
        name for name in SHOWN_SYSTEMS if name not in OURS
    ]


def test_no_two_systems_look_alike():
    use_style()
    looks = system_looks()
    assert set(looks) == set(SHOWN_SYSTEMS)
    bars = {(colors.to_hex(look["color"]), look["hatch"]) for look in looks.values()}
    assert len(bars) == len({colors.to_hex(look["color"]) for look in looks.values()}) == len(SHOWN_SYSTEMS)


def test_no_two_lines_look_alike_in_grey():
    """ProMoE and loading on demand once could not be told apart."""
    use_style()
    looks = {name: line_look(name) for name in SHOWN_SYSTEMS}
    assert len({(str(look["linestyle"]), look["marker"]) for look in looks.values()}) == len(SHOWN_SYSTEMS)
    assert len({colors.to_hex(look["color"]) for name, look in looks.items() if name not in BOUNDS}) == len(SHOWN_SYSTEMS) - 3
    assert [look["label"] for look in looks.values()] == [shown_name(name) for name in SHOWN_SYSTEMS]


def test_bounds_are_grey_or_black():
    use_style()
    for name in BOUNDS:
        red, green, blue = colors.to_rgb(line_look(name)["color"])
        assert red == green == blue
