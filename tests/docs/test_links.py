"""Links between pages: files and headings that they point to exist, as GitHub shows them and as the site does."""

import re
from pathlib import Path

import pytest

from finemoe.artifact.docs.pages import written_pages
from finemoe.artifact.docs.site import site_links
from finemoe.paths import ROOT

_LINK = re.compile(r"(?<!`)\]\((?!https?://|mailto:)([^)\s]+)\)")
_CODE = re.compile(r"^( *)```.*?^\1```", re.MULTILINE | re.DOTALL)


def anchors_of(page: Path) -> set[str]:
    """Headings as GitHub addresses them."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+)$", _CODE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        text = re.sub(r"<!--.*?-->|[`*]|\]\([^)]*\)|\[", "", heading).strip().lower()
        name = base = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        number = 0
        while name in found:
            number += 1
            name = f"{base}-{number}"
        found.add(name)
    return found


@pytest.mark.parametrize("page", written_pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target}: no such file"
        if anchor and file.suffix == ".md":
            assert anchor in anchors_of(file), f"{target}: no such heading in {file.name}"


@pytest.mark.parametrize(
    ("docname", "link", "on_site"),
    [
        ("claims", "../notebooks/figures/f4.ipynb", "notebooks/figures/f4.ipynb"),
        ("claims", "../notebooks/tour/1_quickstart.ipynb#plot", "notebooks/tour/quickstart.ipynb#plot"),
        ("api/index", "../../notebooks/tour/1_quickstart.ipynb", "../notebooks/tour/quickstart.ipynb"),
        ("gpu", "../data/README.md", "data.md"),
        ("gpu", "../README.md", "index.md"),
        ("api/index", "../../data/README.md#licences", "../data.md#licences"),
        ("gpu", "../data/reference/figures/f4.csv", "../data/reference/figures/f4.csv"),
        ("api/index", "../notebooks/tour/1_quickstart.ipynb", "../notebooks/tour/1_quickstart.ipynb"),
    ],
)
def test_links_out_of_the_documentation_lead_to_pages_of_the_site(docname, link, on_site):
    assert site_links(f"see [it]({link}).", docname) == f"see [it]({on_site})."
