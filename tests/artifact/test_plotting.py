import matplotlib

matplotlib.use("agg")

import matplotlib.colors as colors
import matplotlib.pyplot as plt
import pandas as pd
import pytest

from finemoe.artifact.plotting import machine, provenance, save_figure, save_table, series_styles, use_style
from finemoe.simulation.systems import SYSTEMS


@pytest.fixture
def figure():
    use_style()
    fig, axis = plt.subplots()
    axis.plot([1, 2], [3, 4], label="a")
    provenance(fig, "recorded", "two points")
    yield fig
    plt.close(fig)


def test_saving_twice_gives_the_same_bytes(tmp_path, figure):
    table = pd.DataFrame({"x": [1, 2], "y": [1 / 3, 2e-9]})
    for name in ("a", "b"):
        save_figure(figure, table, tmp_path / name)
    for suffix in ("pdf", "png", "csv"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_pictures_carry_neither_date_nor_machine(tmp_path, figure):
    save_figure(figure, pd.DataFrame({"x": [1]}), tmp_path / "a")
    assert b"CreationDate" not in (tmp_path / "a.pdf").read_bytes()
    assert b"Software" not in (tmp_path / "a.png").read_bytes()


def test_stems_with_dots_keep_them(tmp_path, figure):
    save_figure(figure, pd.DataFrame({"x": [1]}), tmp_path / "cap0.5")
    assert {path.name for path in tmp_path.iterdir()} == {"cap0.5.pdf", "cap0.5.png", "cap0.5.csv"}


def test_tables_hide_rounding_noise(tmp_path):
    save_table(pd.DataFrame({"name": ["a,b"], "x": [0.1 + 0.2], "n": [10**9]}), tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == 'name,x,n\n"a,b",0.3,1000000000\n'


def test_neighbouring_series_differ_in_grey():
    use_style()
    names = ["a", "b", "c", "d", "e"]
    look = series_styles(names)
    assert len(set(look["markers"].values())) == len(set(look["dashes"].values())) == len(names)
    luminance = [colors.rgb_to_hsv(colors.to_rgb(look["palette"][name])) for name in names]
    assert len({tuple(value) for value in luminance}) == len(names)


def test_no_two_systems_share_a_colour():
    use_style()
    palette = series_styles(list(SYSTEMS))["palette"]
    assert len({colour.upper() for colour in palette.values()}) == len(SYSTEMS)


def test_no_system_looks_like_what_bounds_the_others():
    """Loading on demand and what keeps everything are drawn black; ProMoE once was, too."""
    use_style()
    palette = series_styles(list(SYSTEMS))["palette"]
    assert "#000000" not in {colors.to_hex(colour) for colour in palette.values()}


def test_machine_names_cores_and_nothing_personal():
    assert machine().split("-core ")[0].isdigit()
