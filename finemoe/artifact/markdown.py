"""Tables and generated parts of Markdown pages."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from finemoe.errors import FinemoeError

if TYPE_CHECKING:
    import pandas as pd


def pipe_table(table: "pd.DataFrame") -> str:
    """Format a table in Markdown."""
    cells = [[one_line(str(value)).replace("|", "\\|") for value in row] for row in table.itertuples(index=False)]
    lines = [list(table.columns), ["---"] * len(table.columns), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def between_marks(page: str, name: str, text: str) -> str:
    """Replace the text between the marks `<!-- name: ... -->` and `<!-- end of name -->` of a page.

    Raises:
        FinemoeError: the page does not have these marks.
    """
    begin, end = page.find(f"<!-- {name}:"), page.find(f"<!-- end of {name} -->")
    if not 0 <= begin < end:
        raise FinemoeError(f"no place for the {name}: the marks <!-- {name}: ... --> and <!-- end of {name} --> are missing")
    head = page.index("\n", begin) + 1
    return page[:head] + text + page[end:]


def with_blocks(page: str, texts: Mapping[str, str]) -> str:
    """Replace the text between each of several pairs of marks; `texts` maps names of marks to texts."""
    for name, text in texts.items():
        page = between_marks(page, name, text)
    return page


def one_line(text: str) -> str:
    """A text without line breaks, as required in a table's cell or a list's item."""
    return re.sub(r"\s+", " ", text, flags=re.ASCII).strip(" ")  # keeps non-breaking spaces
