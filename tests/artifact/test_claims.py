import json
import re

import pandas as pd
import pytest

from finemoe.artifact.claims import (
    ARTEFACTS,
    RULE,
    VERDICTS,
    Claim,
    Statement,
    collect,
    deciding,
    to_markdown,
    verdict_of,
)
from finemoe.artifact.claims_page import found_table
from finemoe.artifact.markdown import between_marks
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
    assert RULE in (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")


def test_collect_orders_as_the_paper_does(tmp_path):
    for id_ in ("F10", "T1", "F3b", "F4", "F3a"):
        Claim(**F4 | {"id": id_}).save(tmp_path / f"{id_}.json")
    table = collect(sorted(tmp_path.glob("*.json")))
    assert list(table["id"]) == ["T1", "F3a", "F3b", "F4", "F10"]
    assert table.columns[0] == "id"


def test_collect_refuses_two_claims_of_one_id(tmp_path):
    for name in ("a", "b"):
        Claim(**F4).save(tmp_path / f"{name}.json")
    with pytest.raises(FinemoeError, match="several claims have the id F4"):
        collect([tmp_path / "a.json", tmp_path / "b.json"])


@pytest.mark.parametrize("content", ["", "{", json.dumps({"id": "F4"})])
def test_an_unreadable_claim_says_what_to_do(tmp_path, content):
    (tmp_path / "f4.json").write_text(content)
    with pytest.raises(FinemoeError, match="run the notebook that writes it again"):
        collect([tmp_path / "f4.json"])


def test_markdown_has_a_section_for_each_claim(tmp_path):
    Claim(**F4 | {"reproduced": "decided by a case: 1 of 1 (p); hits: gpt-oss-20b fine 0.90, coarse 0.60 | odd"}).save(
        tmp_path / "f4.json"
    )
    page = to_markdown(collect([tmp_path / "f4.json"]), "what a GPU did\n")
    assert "| [Figure\u00a04](#figure-4) | fine beats coarse at every distance | holds | recorded | a case: 1 of 1 (p) |" in page
    assert "### Figure 4\n\nfine beats coarse at every distance: **holds**." in page
    assert "- *The paper reports*: fine higher.\n- *Tested on*: gpt-oss-20b (recorded)." in page
    assert "Found (hits):\n\n| panel | fine | coarse |" not in page  # fewer panels than names: names are rows
    assert "|  | gpt-oss-20b |\n| --- | --- |\n| fine | 0.90 |\n| coarse | 0.60 \\| odd |" in page  # a bar must not split a cell
    assert "\n\ntwo lines\n\nTable: [f4.csv](f4.csv)." in page
    assert "1 artefacts: holds: 1, holds weaker: 0" in page
    assert RULE in page
    assert page.endswith("## Measured on a GPU\n\nwhat a GPU did\n")


@pytest.mark.parametrize(
    ("found", "reported", "caption", "rows"),
    [
        ("qwen-mini/questions 1.2 times; phi-mini 5", "none", "", [["qwen-mini, questions", "1.2 times"], ["phi-mini", "5"]]),
        ("gain: qwen-mini +0.6; phi-mini +0.4", "", "gain", [["qwen-mini", "+0.6"], ["phi-mini", "+0.4"]]),
        ("a, TTFT: lowest at 1, 2; a, TPOT: lowest at 1", "", "", [["a, TTFT", "lowest at 1, 2"], ["a, TPOT", "lowest at 1"]]),
        ("service against A -1%, B -2%", "", "service against", [["A", "-1%"], ["B", "-2%"]]),
        ("miniatures: latency -44%, hit rate +2%", "latency -47%, hit rate +39%", "",
         [["paper", "-47%", "+39%"], ["miniatures", "-44%", "+2%"]]),
        ("miniatures: TTFT -1%/-2% (A, B), hits +3%", "", "", [["TTFT, A", "-1%"], ["TTFT, B", "-2%"], ["hits", "+3%"]]),
        ("miniatures: A -83%, B -8%; gpt-oss-20b: A -81%, B +2% at 6 GB", "", "at 6 GB",
         [["miniatures", "-83%", "-8%"], ["gpt-oss-20b", "-81%", "+2%"]]),
        ("90 % after qwen-mini/questions 13, phi-mini 12 steps", "", "", [["qwen-mini, questions", "13"], ["phi-mini", "12"]]),
        ("qwen-mini 26.5 ms, 10% of 258 ms", "", "", [["qwen-mini", "26.5 ms, 10% of 258 ms"]]),
        ("mixtral-8x7b/MMLU, whole prompts s 0.7 [0.6, 0.8]", "", "", [["mixtral-8x7b, MMLU, whole prompts", "0.7 [0.6, 0.8]"]]),
    ],
)  # fmt: skip
def test_values_become_a_table(found, reported, caption, rows):
    assert (found_table(found, reported)[0], found_table(found, reported)[1].to_numpy().tolist()) == (caption, rows)


def test_every_shipped_value_is_in_its_table():
    """Numbers of a claim's one line are those of its table, none lost and none twice."""
    shipped = pd.read_csv(ROOT / "data" / "reference" / "figures" / "claims.csv", keep_default_na=False)
    assert list(shipped.id) == list(ARTEFACTS)  # every row of the paper's evaluation
    for claim in shipped.itertuples(index=False):
        found = claim.reproduced.partition("; ")[2]
        caption, table = found_table(found)
        shown = f"{caption} {list(table.columns)} {table.to_numpy().tolist()}"
        for number in re.findall(r"\d+\.\d+", found):
            assert shown.count(number) >= found.count(number), f"{claim.id}: {number}"


def test_every_artefact_is_named_once():
    assert len(set(ARTEFACTS)) == len(ARTEFACTS) == 20


def test_a_page_without_marks_is_named():
    with pytest.raises(FinemoeError, match="no place for the claims"):
        between_marks("nothing here", "claims", "text")
