"""Generated numbers in a page's text: `<!--n:NAME-->60.8 %<!--/n-->`, of which a reader sees "60.8 %".

Both GitHub and the site hide the comments, in sentences as in table cells. Where such a comment begins a line or a list item,
Markdown takes the whole line as HTML and shows its asterisks and links as they are typed. In a paragraph such a number is moved
to the end of the line before; elsewhere it is refused.
"""

import re
from collections.abc import Iterator, Mapping

from finemoe.errors import FinemoeError
from finemoe.suggestions import did_you_mean

MARK = re.compile(r"<!--n:(?P<name>[\w.-]+)-->(?P<text>.*?)<!--/n-->", re.DOTALL)
_CODE = re.compile(r"^([ \t]*)```.*?^\1```|(?<!`)`[^`\n]+`(?!`)", re.MULTILINE | re.DOTALL)
_HIDDEN = "<!\0--"  # a comment's beginning in code, which is shown as it is
_STRAY = re.compile(r"<!--\s*/?n\b[^>]*>")
_MOVABLE = re.compile(
    r"^(?P<before>(?![ \t]*[#|>]|[ \t]*$).*\S)[ \t]*\n[ \t]*(?P<mark><!--n:[\w.-]+-->[^\n]*?<!--/n-->\S*)[ \t]*(?=\S)",
    re.MULTILINE,
)
_BEGINS_A_LINE = re.compile(r"^[ \t]*(?:(?:[-*+]|\d+[.)])[ \t]+)?<!--n:", re.MULTILINE)


def renewed_numbers(page: str, numbers: Mapping[str, str], where: str) -> str:
    """A page with the current text in every mark.

    Args:
        page: Markdown. numbers: text of every number, by name. where: the page's name, for messages.
    Raises:
        FinemoeError: a name is unknown, a mark is not closed, or a mark begins a line.
    """
    page = _CODE.sub(lambda code: code.group().replace("<!--", _HIDDEN), page)
    while _MOVABLE.search(page):
        page = _MOVABLE.sub("\\g<before> \\g<mark>\\n", page)
    if found := _BEGINS_A_LINE.search(page):
        raise FinemoeError(f"{where}, line {_line(page, found)}: a generated number begins the line; put a word before it")
    stray = _STRAY.search(MARK.sub(lambda mark: "x" * len(mark.group()), page))
    if stray:
        raise FinemoeError(f"{where}, line {_line(page, stray)}: {stray.group()} has no partner; write <!--n:NAME-->...<!--/n-->")
    for mark in MARK.finditer(page):
        if _STRAY.search(mark["text"]):
            raise FinemoeError(f"{where}, line {_line(page, mark)}: <!--n:{mark['name']}--> has another mark inside; close it")
    for name, line in marked_names(page):
        if name not in numbers:
            advice = f"{did_you_mean(name, numbers)} `python -m finemoe.artifact.docs --list` prints all of them".strip()
            raise FinemoeError(f"{where}, line {line}: no generated number {name!r}; {advice}")
    filled = MARK.sub(lambda mark: f"<!--n:{mark['name']}-->{numbers[mark['name']]}<!--/n-->", page)
    return filled.replace(_HIDDEN, "<!--")


def marked_names(page: str) -> Iterator[tuple[str, int]]:
    """Names of the numbers in a page, each with its line."""
    for mark in MARK.finditer(page):
        yield mark["name"], _line(page, mark)


def _line(page: str, found: re.Match[str]) -> int:
    return page.count("\n", 0, found.start() + len(found.group()) - len(found.group().lstrip())) + 1
