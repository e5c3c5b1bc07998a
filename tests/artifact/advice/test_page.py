"""The page is one file that loads nothing, has the same bytes every time, shows every number, and trusts no text."""

import base64
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import pytest

import finemoe
from finemoe.advice.result import Advice
from finemoe.advice.sentences import sentences
from finemoe.artifact.advice.page import page_text, write_page
from finemoe.paths import ROOT
from finemoe.units import format_bytes
from tests.artifact.advice.made_up import make_advice

HOSTILE = "\"><script>alert(1)</script><img src=http://evil.example/x onerror=1> & 'gemma'"
EMPTY = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Texts, tags with their attributes, and whether every tag that opens closes."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def advice() -> Advice:
    return make_advice()


@pytest.fixture(scope="module")
def text(advice) -> str:
    return page_text(advice, "tiny.trace")


@pytest.fixture(scope="module")
def page(text) -> Reader:
    return Reader(text)


def pictures_of(page: Reader) -> dict[str, str]:
    prefix = "data:image/svg+xml;base64,"
    assert all(image["src"].startswith(prefix) for image in page.of("img"))
    return {image["alt"]: base64.b64decode(image["src"].removeprefix(prefix)).decode() for image in page.of("img")}


def test_it_loads_nothing(page, text):
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "a", "base"} == set()
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "href"]
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert "url(" not in text
    (policy,) = [meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_figures_are_whole_pictures_without_links_or_dates(page):
    pictures = pictures_of(page)
    assert len(pictures) == 7
    for picture in pictures.values():
        assert ElementTree.fromstring(picture).tag.endswith("svg")
        assert not re.findall(r'href="(?!#)', picture)
        assert "<image" not in picture
        assert "dc:date" not in picture
        assert "matplotlib.org" not in picture


def test_same_advice_same_bytes_and_the_session_is_left_alone(advice, text, tmp_path):
    before, open_figures = dict(plt.rcParams), plt.get_fignums()
    write_page(advice, "tiny.trace", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_bytes() == text.encode()
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert len(text) < 2 << 20
    assert dict(plt.rcParams) == before
    assert plt.get_fignums() == open_figures


def test_hostile_texts_are_shown_and_do_nothing():
    changes = {
        "warnings": [HOSTILE],
        "notes": [HOSTILE],
        "left_out": {HOSTILE: HOSTILE},
        "trace": make_advice().trace | {"model": HOSTILE},
        "machine": make_advice().machine | {"testbed": HOSTILE},
    }
    text = page_text(make_advice(**changes), HOSTILE, command=f"finemoe advise {HOSTILE}")
    page = Reader(text)
    assert "<script" not in text
    assert page.of("script") == []
    assert len(page.of("img")) == 7
    assert (
        page.text.count(HOSTILE) >= 9
    )  # title, heading, warning, note, name and reason of what is left out, model, testbed, command


def test_sentences_come_first_then_warnings_then_figures(page, advice):
    for sentence in sentences(advice):
        assert sentence in page.text
    order = [
        page.text.index(part) for part in (sentences(advice)[0], "The trace is made up.", "Time per token over expert memory")
    ]
    assert order == sorted(order)


def test_every_number_of_the_recommendation_is_there(page, advice):
    chosen = advice.recommendation
    for kind in ("row", "best", "on_demand", "prefetching"):
        row = chosen[kind]
        assert row["system"] in page.text
        assert f"{1000 * row['tpot_s']:.2f} [{1000 * row['low']:.2f}, {1000 * row['high']:.2f}]" in page.text
        for shown in (f"{row['slots']:,}", format_bytes(row["bytes"]), f"{row['tokens_per_s']:.2f}", "321.0", "17.3"):
            assert shown in page.text
    assert "61.3" in page.text
    for seconds in advice.limits.values():
        assert f"{1000 * seconds:.2f}" in page.text


def test_every_row_is_in_a_table(page, advice):
    rows = page.of("tr")
    sizes = {row["slots"] for row in advice.hit_rates}
    windows, machine, trace = len(advice.working_set) + 1, 10, 11
    lists = (advice.times, advice.prefetching, advice.predictability, advice.concentration, advice.reuse, advice.sensitivity)
    assert len(rows) == sum(map(len, lists)) + len(sizes) + windows + machine + trace + 10  # one head a table
    assert sum(row.get("class") == "no-room" for row in rows) == sum(
        not row["fits"] for row in (*advice.times, *advice.sensitivity)
    )


def test_what_is_left_out_notes_and_definitions(page):
    for part in (
        "Mixtral-Offloading : routers applied 1 ahead are not recorded.",
        "Replayed: all of it.",
        "Virtual time",
        f"finemoe {finemoe.__version__}",
        "finemoe advise tiny.trace -m tiny-moe --hardware TESTBED --page PAGE.html",
        "tiny-moe: 4 layers x 8 experts, 2 used by a token; 3.0 MiB an expert, 96.0 MiB all of them",
        "a made-up machine; 100.0 MiB of memory, 69.0 MiB of it for experts",
    ):
        assert part in page.text


def test_without_a_machine_there_are_hit_rates_and_no_times():
    page = Reader(page_text(make_advice(machine=False), "tiny.trace"))
    assert set(pictures_of(page)) == {
        "Hit rate over expert memory",
        "How well the experts can be predicted",
        "How experts are used",
        "How soon an expert is used again",
    }
    for absent in ("Virtual time", "Machine:", "Time per token", "--hardware", "Sensitivity"):
        assert absent not in page.text


def test_a_trace_of_one_request_without_sizes():
    text = page_text(make_advice(machine=False, intervals=False, sizes_known=False), "tiny.trace")
    page = Reader(text)
    assert re.findall(r"\bnan\b", page.text, re.IGNORECASE) == []
    assert "MiB" not in page.text


def test_where_nothing_fits():
    advice = make_advice(recommendation=None, limits={}, sensitivity=[])
    page = Reader(page_text(advice, "tiny.trace"))
    assert "None of these sizes of expert memory fits" in page.text
    assert "What changes the advice" not in page.text
    assert "Time per token over expert memory" in page.text


WITHOUT_MATPLOTLIB = """
import sys
sys.modules["matplotlib"] = None
from finemoe.cli.advise_command import drawing
drawing()
"""


def test_a_missing_matplotlib_is_reported_before_anything_is_computed():
    done = subprocess.run([sys.executable, "-c", WITHOUT_MATPLOTLIB], cwd=ROOT, capture_output=True, text=True)
    assert "FinemoeError: --page needs matplotlib" in done.stderr
