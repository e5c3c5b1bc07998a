import json

import pandas as pd
import pytest

from finemoe.artifact.claims import (
    ARTEFACTS,
    RULE,
    VERDICTS,
    Claim,
    Statement,
    between_marks,
    collect,
    deciding,
    to_markdown,
    to_summary,
    verdict_of,
)
from finemoe.errors import FinemoeError
from finemoe.paths import ROOT

F4 = {
    "id": "F4",
    "artefact": "Fig. 4",
    "claim": "fine beats coarse at every distance",
    "reported": "fine higher",
    "reproduced": "0.90 | 0.60",
    "verdict": "holds",
    "panel": "gpt-oss-20b",
    "executor": "recorded",
    "why": "two\nlines",
}


def test_save_and_load_are_inverses(tmp_path):
    claim = Claim(**F4)
    claim.save(tmp_path / "deep" / "f4.json")
    assert Claim.load(tmp_path / "deep" / "f4.json") == claim


def test_same_claim_same_bytes(tmp_path):
    Claim(**F4).save(tmp_path / "a.json")
    Claim(**F4).save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"verdict": "maybe"}, "verdict 'maybe' is none of"), ({"id": "F99"}, "unknown id"), ({"why": " "}, "why is empty")],
)
def test_incomplete_claims_are_refused(change, message):
    with pytest.raises(FinemoeError, match=message):
        Claim(**F4 | change)


@pytest.mark.parametrize(
    ("shares", "verdict", "decided"),
    [
        ([(3, 3), (6, 6)], "holds", "first: 3 of 3 (p)"),
        ([(3, 3), (6, 8)], "holds weaker", "second: 6 of 8 (p)"),
        ([(2, 3), (6, 8)], "holds weaker", "first: 2 of 3 (p)"),
        ([(1, 2), (6, 6)], "does not hold", "first: 1 of 2 (p)"),  # half is not most
        ([(100, 100), (0, 1)], "does not hold", "second: 0 of 1 (p)"),  # many cases do not outvote another statement's
        ([(0, 0), (2, 2)], "holds", "second: 2 of 2 (p)"),  # what was not tested says nothing
        ([(0, 0)], "not testable here", ""),
    ],
)
def test_one_rule_gives_every_verdict(shares, verdict, decided):
    statements = [Statement(name, "p", *share) for name, share in zip(("first", "second"), shares, strict=False)]
    assert verdict_of(statements) == verdict
    assert deciding(statements) == (f"decided by {decided}" if decided else "nothing could be tested")
    texts = {name: F4[name] for name in ("id", "artefact", "claim", "reported", "panel", "executor", "why")}
    claim = Claim.judged(statements, reproduced="values", **texts)
    assert (claim.verdict, claim.reproduced) == (verdict, f"{deciding(statements)}; values")


def test_no_claim_has_a_rule_of_its_own():
    """Whatever writes a claim leaves the verdict to the rule; the pages that show verdicts state it."""
    sources = [*(ROOT / "finemoe" / "artifact").rglob("*.py"), *(ROOT / "notebooks").rglob("*.ipynb")]
    writers = [
        text for text in (path.read_text(encoding="utf-8") for path in sources) if "Claim" in text and "claims import" in text
    ]
    assert len(writers) > 10
    for text in writers:
        assert "verdict=" not in text
        assert not [verdict for verdict in VERDICTS[:3] if f'"{verdict}"' in text or f'\\"{verdict}\\"' in text]
    assert RULE in (ROOT / "README.md").read_text(encoding="utf-8")


def test_collect_orders_as_the_paper_does(tmp_path):
    for id_ in ("F10", "T1", "F3b", "F4", "F3a"):
        Claim(**F4 | {"id": id_}).save(tmp_path / f"{id_}.json")
    table = collect(sorted(tmp_path.glob("*.json")))
    assert list(table["id"]) == ["T1", "F3a", "F3b", "F4", "F10"]
    assert table.columns[0] == "id"


def test_collect_refuses_two_claims_of_one_id(tmp_path):
    for name in ("a", "b"):
        Claim(**F4).save(tmp_path / f"{name}.json")
    with pytest.raises(FinemoeError, match="several claims bear the id F4"):
        collect([tmp_path / "a.json", tmp_path / "b.json"])


@pytest.mark.parametrize("content", ["", "{", json.dumps({"id": "F4"})])
def test_an_unreadable_claim_says_what_to_do(tmp_path, content):
    (tmp_path / "f4.json").write_text(content)
    with pytest.raises(FinemoeError, match="run the notebook that writes it again"):
        collect([tmp_path / "f4.json"])


def test_markdown_is_one_table_row_per_claim(tmp_path):
    Claim(**F4).save(tmp_path / "f4.json")
    page = to_markdown(collect([tmp_path / "f4.json"]), "what a GPU did\n")
    rows = [line for line in page.splitlines() if line.startswith("| F4")]
    assert len(rows) == 1
    assert "0.90 \\| 0.60" in rows[0]  # a bar inside a cell must not split it
    assert "- **F4** (gpt-oss-20b): two lines" in page
    assert "1 artefacts: holds: 1, holds weaker: 0" in page
    assert RULE in page
    assert page.endswith("two lines\n\n## Measured on a GPU\n\nwhat a GPU did\n")


def test_every_artefact_is_named_once():
    assert len(set(ARTEFACTS)) == len(ARTEFACTS) == 20


def test_the_readme_s_summary_is_that_of_the_shipped_claims():
    """`make reference` writes both."""
    shipped = pd.read_csv(ROOT / "data" / "reference" / "figures" / "claims.csv")
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert between_marks(page, "claims", to_summary(shipped)) == page
    assert list(shipped.id) == list(ARTEFACTS)  # every row of the paper's evaluation


def test_a_page_without_marks_is_named():
    with pytest.raises(FinemoeError, match="no place for the claims"):
        between_marks("nothing here", "claims", "text")
