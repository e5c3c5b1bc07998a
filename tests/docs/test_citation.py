"""CITATION.cff, changelog and licences say what the project's metadata say."""

import re
import tomllib

import yaml

import finemoe
from finemoe.paths import DATA, ROOT

CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_citation_is_of_this_version_under_this_licence():
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["version"] == finemoe.__version__
    assert CITATION["license"] == PROJECT["license"] == "Apache-2.0"
    assert {"message", "title", "authors", "type"} <= set(CITATION)
    assert CITATION["authors"] == [{"name": "The finemoe authors"}]


def test_the_paper_is_what_to_cite():
    paper = CITATION["preferred-citation"]
    assert paper["type"] == "conference-paper"
    assert [author["family-names"] for author in paper["authors"]] == ["Yu", "Cui", "Zhang", "Wang", "Wang"]
    assert paper["title"].startswith("Taming Latency-Memory Trade-Off in MoE-Based LLM Serving")
    assert "2502.05370" in str(paper)


def test_the_changelog_has_the_version_that_comes():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## Unreleased \(0\.1\)$", text, re.MULTILINE)
    sections = re.findall(r"^### (\w+)", text, re.MULTILINE)
    assert set(sections) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_every_folder_of_data_has_a_licence():
    text = (DATA / "README.md").read_text(encoding="utf-8")
    licences = text[text.index("## Licences") :]
    for folder in sorted(path.name for path in DATA.iterdir() if path.is_dir()):
        assert f"`{folder}" in licences, f"data/{folder} has no licence in data/README.md"
