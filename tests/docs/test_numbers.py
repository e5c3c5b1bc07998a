"""Generated numbers: pages are up to date, marks are checked, and every number has a source that is shipped."""

import pytest

from finemoe.artifact.docs.__main__ import main
from finemoe.artifact.docs.marks import marked_names, renewed_numbers
from finemoe.artifact.docs.numbers import all_numbers
from finemoe.artifact.docs.pages import renewed_pages, written_pages
from finemoe.artifact.docs.tables import milliseconds, percent, signed_percent, slug
from finemoe.errors import FinemoeError
from finemoe.paths import DATA, ROOT

NUMBERS = {"hits": "61 %", "time": "47 ms"}


def test_pages_are_those_of_the_shipped_tables():
    for path, text in renewed_pages().items():
        same = path.read_text(encoding="utf-8") == text
        assert same, f"{path.relative_to(ROOT)} is out of date: run `python -m finemoe.artifact.docs`"


def test_every_number_has_a_shipped_source_and_a_text():
    for number in all_numbers().values():
        assert (DATA / number.source).is_file(), number
        assert number.text.strip() == number.text != "", number
        assert "nan" not in number.text.split(), number
        assert number.meaning, number


def test_no_page_is_left_out():
    """A page in a folder that the command does not look at would keep old numbers."""
    seen = set(written_pages())
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        if "<!--n:" in path.read_text(encoding="utf-8"):
            assert path in seen, path


def test_marks_are_filled_in_sentences_and_cells():
    page = "Hit rate <!--n:hits-->1 %<!--/n-->.\n\n| a | b |\n|---|---|\n| <!--n:time--><!--/n--> | x |\n"
    renewed = renewed_numbers(page, NUMBERS, "page.md")
    assert "Hit rate <!--n:hits-->61 %<!--/n-->." in renewed
    assert "| <!--n:time-->47 ms<!--/n--> | x |" in renewed
    assert renewed_numbers(renewed, NUMBERS, "page.md") == renewed
    assert list(marked_names(page)) == [("hits", 1), ("time", 5)]


def test_code_is_left_alone():
    page = "Write `<!--n:NAME-->` and `<!--/n-->`: <!--n:hits-->61 %<!--/n-->.\n\n```md\n<!--n:NAME-->\n```\n"
    assert renewed_numbers(page, NUMBERS, "page.md") == page


def test_a_number_that_begins_a_line_of_a_paragraph_is_moved():
    page = "A rate of\n<!--n:hits-->1<!--/n-->, and\n<!--n:time-->2<!--/n--> more.\n"
    moved = "A rate of <!--n:hits-->61 %<!--/n-->,\nand <!--n:time-->47 ms<!--/n-->\nmore.\n"
    assert renewed_numbers(page, NUMBERS, "page.md") == moved
    assert renewed_numbers(moved, NUMBERS, "page.md") == moved


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("a\nb <!--n:hit-->1<!--/n-->", r"page.md, line 2: no generated number 'hit'; did you mean 'hits'\? .*--list"),
        ("# a\n<!--n:hits-->1<!--/n--> b", r"page.md, line 2: a generated number begins the line; put a word before it"),
        ("a\n\n<!--n:hits-->1<!--/n--> b", r"page.md, line 3: a generated number begins the line"),
        ("a\n\n- <!--n:hits-->1<!--/n--> b", r"page.md, line 3: a generated number begins the line"),
        ("a <!--n:hits-->1 b", r"page.md, line 1: <!--n:hits--> has no partner"),
        ("a\nb <!--/n--> c", r"page.md, line 2: <!--/n--> has no partner"),
        ("a <!--n:hits-->1 b <!--n:time-->2<!--/n-->", r"<!--n:hits--> has another mark inside"),
    ],
)
def test_wrong_marks_are_named(page, message):
    with pytest.raises(FinemoeError, match=message):
        renewed_numbers(page, NUMBERS, "page.md")


def test_numbers_are_written_one_way():
    assert (milliseconds(0.0472), milliseconds(0.00472), milliseconds(1.2)) == ("47 ms", "4.7 ms", "1200 ms")
    assert (percent(0.608), percent(-0.001), percent(0.009, 1)) == ("61 %", "0 %", "0.9 %")
    assert (signed_percent(-0.47), signed_percent(0.3)) == ("−47 %", "+30 %")
    assert slug("on-demand (LRU)") == "on_demand_lru"
    assert slug("qwen-mini") == "qwen"


def test_list_prints_every_number_with_its_source(capsys):
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(all_numbers())
    assert all(len(line.split("\t")) == 4 for line in lines)


def test_an_outdated_page_fails_the_check(monkeypatch, capsys, tmp_path):
    page = ROOT / "README.md"
    monkeypatch.setattr("finemoe.artifact.docs.__main__.renewed_pages", lambda: {page: "other"})
    before = page.read_bytes()
    assert main(["--check"]) == 1
    assert "README.md: out of date" in capsys.readouterr().out
    assert page.read_bytes() == before


def test_an_edit_made_meanwhile_is_kept(monkeypatch, capsys, tmp_path):
    """Computing takes seconds, during which the page may be saved."""
    page = tmp_path / "page.md"
    page.write_text("before")

    def renewed() -> dict:
        page.write_text("edited")
        return {page: "renewed"}

    monkeypatch.setattr("finemoe.artifact.docs.__main__.written_pages", lambda: [page])
    monkeypatch.setattr("finemoe.artifact.docs.__main__.renewed_pages", renewed)
    monkeypatch.setattr("finemoe.artifact.docs.__main__.ROOT", tmp_path)
    assert main([]) == 1
    assert capsys.readouterr().err == "Error: page.md: edited meanwhile and left as it is; run this again\n"
    assert page.read_text() == "edited"
