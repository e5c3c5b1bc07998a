"""Tables and generated parts of Markdown pages."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from finemoe.errors import FinemoeError

if TYPE_CHECKING:
    import pandas as pd


def pipe_table(table: "pd.DataFrame") -> str:
    """A table in Markdown."""
    cells = [[one_line(str(value)).replace("|", "\\|") for value in row] for row in table.itertuples(index=False)]
    lines = [list(table.columns), ["---"] * len(table.columns), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def between_marks(page: str, name: str, text: str) -> str:
    """A page with a text between its marks `<!-- name: ... -->` and `<!-- end of name -->`.

    Raises:
        FinemoeError: the page has no such marks.
    """
    begin, end = page.find(f"<!-- {name}:"), page.find(f"<!-- end of {name} -->")
    if not 0 <= begin < end:
        raise FinemoeError(f"no place for the {name}: the marks <!-- {name}: ... --> and <!-- end of {name} --> are missing")
    head = page.index("\n", begin) + 1
    return page[:head] + text + page[end:]


def with_blocks(page: str, texts: Mapping[str, str]) -> str:
    """A page with a text between each of several marks, by name."""
    for name, text in texts.items():
        page = between_marks(page, name, text)
    return page


def one_line(text: str) -> str:
    """A text without line breaks, as a table's cell or a list's item needs it."""
    return re.sub(r"\s+", " ", text, flags=re.ASCII).strip(" ")  # spaces that do not break stay
