"""No result is typed by hand: a number with a unit or two decimals is generated, in code, or listed with the reason why not."""

import pytest
import yaml

from finemoe.artifact.docs.pages import written_pages
from finemoe.paths import ROOT
from tests.docs.typed import typed_numbers

# Written by a command as a whole, from data/reference/advice.
GENERATED = ("docs/gallery.md",)
PAGES = {str(path.relative_to(ROOT)): path for path in written_pages()}
EXEMPT = yaml.safe_load((ROOT / "tests" / "docs" / "typed_exempt.yaml").read_text(encoding="utf-8"))
REASONS = ("definition", "setting", "hardware", "version", "paper", "estimate", "not generated: ")


@pytest.mark.parametrize("page", [name for name in PAGES if name not in GENERATED])
def test_results_are_generated(page):
    fragments = [entry["text"] for entry in EXEMPT.get(page, [])]
    found = typed_numbers(PAGES[page].read_text(encoding="utf-8"))
    typed = {sentence: numbers for sentence, numbers in found.items() if not any(one in sentence for one in fragments)}
    advice = "generate it (`python -m finemoe.artifact.docs --list`) or say in tests/docs/typed_exempt.yaml why not"
    assert not typed, f"{page}: {typed}; {advice}"
    unneeded = [one for one in fragments if not any(one in sentence for sentence in found)]
    assert not unneeded, f"{page} has no number there any more: {unneeded}"


def test_every_exemption_has_a_reason():
    assert set(EXEMPT) <= set(PAGES)
    for page, entries in EXEMPT.items():
        for entry in entries:
            assert entry["why"].startswith(REASONS), f"{page}: {entry}"


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("A token takes 47 ms, 20 % less.", ["47 ms", "20 %"]),
        ("It takes 1.5 times as long at 24 GB/s.", ["1.5 times", "24 GB/s"]),
        ("A recall of 0.61 with 1,000 maps of 32 layers.", ["0.61"]),
        ("Python 3.11 and `--link 24GB/s` and 8 devices.", []),
        ("It takes <!--n:x-->47 ms<!--/n-->.", []),
        ("```text\n47 ms\n```\n\n   ```text\n   47 ms\n   ```", []),
        ("<!-- table: written by `x` -->\n| 47 ms |\n<!-- end of table -->", []),
        ("| 0.832 | 3 |\n| --- | --- |", ["0.832"]),
        ("See [it](figure-0.25.md).", []),
    ],
)
def test_what_counts_as_a_result(text, numbers):
    assert [number for found in typed_numbers(text).values() for number in found] == numbers
