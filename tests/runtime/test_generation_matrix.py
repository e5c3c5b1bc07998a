"""The table of docs/generation.md has every mode, and says what happens: a part of it that the commit decides is run again."""

import os

import pytest
import transformers

from tests.parts import NUM_PARTS, part
from tests.runtime.generation_matrix import EQUAL, FAMILIES, MARKS, PAGE, Outcome, row, rows_of
from tests.runtime.generation_modes import MODES

SLOW = ("static cache, compiled", "continuous batching")  # which test_modes.py and test_phases.py run
QUICK = [name for name in MODES if name not in SLOW]
CHOSEN = list(MODES) if os.environ.get("FINEMOE_FAMILIES") == "all" else QUICK[part(NUM_PARTS) :: NUM_PARTS]


def rows_on_the_page() -> dict[str, str]:
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index(MARKS[0]) : text.index(MARKS[1])]
    if f"Transformers {transformers.__version__};" not in table:
        pytest.skip("the table was written for the reference environment")
    lines = [line for line in table.splitlines() if line.startswith("| ")][1:]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines}


def test_the_page_has_every_mode_and_none_differs():
    rows = rows_on_the_page()
    assert list(rows) == list(MODES)
    assert not [line for line in rows.values() if "differs" in line]


@pytest.mark.parametrize("name", CHOSEN)
def test_a_mode_does_what_the_page_says(name):
    """In the first family; the others are run when the page is written."""
    found, told = rows_of([name], FAMILIES[:1])[0].split(" | "), rows_on_the_page()[name].split(" | ")
    if "refused" not in found[2]:
        assert told[2].split(":")[0].split(" but ")[0] == found[2] == "all"
    assert (found[:2], found[3:]) == (told[:2], told[3:])


def test_a_row_names_the_families_in_which_a_mode_is_not_equal():
    outcomes = {"mixtral": Outcome(EQUAL), "gpt_oss": Outcome("refused: a|b"), "olmoe": Outcome("refused: a|b")}
    assert "| all but gpt_oss, olmoe: refused: a\\|b | – |" in row("greedy", outcomes)
    assert "| differs under finemoe | – |" in row("greedy", {"mixtral": Outcome("differs under finemoe")})
