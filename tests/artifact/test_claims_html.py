"""The page of claims in the report."""

import pandas as pd
from bs4 import BeautifulSoup

from finemoe.artifact.claims import RULE
from finemoe.artifact.claims_html import claims_html
from finemoe.paths import REFERENCE_FIGURES

CLAIMS = pd.read_csv(REFERENCE_FIGURES / "claims.csv", keep_default_na=False)


def test_every_claim_is_a_row_with_its_verdict_and_what_decided_it():
    rows = BeautifulSoup(claims_html(CLAIMS), "html.parser").find_all("tr")
    cells = [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in rows]
    found = pd.DataFrame(cells[1:], columns=cells[0])
    assert found.artefact.tolist() == CLAIMS.artefact.tolist()
    assert found.verdict.tolist() == CLAIMS.verdict.tolist()
    assert found["decided by"].tolist() == [text.split("; ")[0].removeprefix("decided by ") for text in CLAIMS.reproduced]


def test_the_rule_and_a_warning_stand_above_the_table():
    page = claims_html(CLAIMS, "tiny & fast")
    head = page[: page.index("<table")]
    assert "tiny &amp; fast" in head
    assert RULE.replace("*", "")[:60] in head
    assert "http" not in page  # self-contained
