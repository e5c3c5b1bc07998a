"""The page of claims: the paper's result, the project's result, the verdict and its reason for each claim.

A claim's `reproduced` is one line, `decided by STATEMENT; PANEL NAME VALUE, NAME VALUE; ...`. This module turns it into a small
table with panels and names as its two axes.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from finemoe.artifact.markdown import one_line, pipe_table

if TYPE_CHECKING:
    import pandas as pd

_PANELS = (
    r"(?:mixtral-mini|qwen-mini|phi-mini|gpt-oss-20b|mixtral-8x7b|qwen1\.5-moe-a2\.7b|phi-3\.5-moe|Mixtral-8x7B|Qwen1\.5-MoE|Phi-3\.5-MoE"
    r"|miniatures)(?:/(?:questions|dialogues|mixed|MMLU, (?:whole prompts|less shared part)))?"
)
_PANEL = re.compile(rf"(?P<panel>{_PANELS}):? (?P<rest>.+)")
_LISTED = re.compile(rf"(?P<panel>{_PANELS}) (?P<value>[\d.]+)")
_NAMED = re.compile(r"(?P<name>.*?)\s?(?P<value>(?<!\S)[+\-−]?\d.*)")
_SHARED = re.compile(r"(?P<name>.+?) (?P<values>[+\-−]?\d+%(?:/[+\-−]?\d+%)+) \((?P<of>[^)]*)\)")
_COMMA = re.compile(r", (?![^(\[]*[)\]])")  # outside brackets
_TAIL = re.compile(r" (at \d+ GB)$")
_FOUND, _PAPER = "found", "paper"
Links = Callable[[str], str]
Cells = dict[tuple[str, str], str]  # values by panel and name


def claim_sections(table: "pd.DataFrame", links: Links) -> str:
    """A section for each claim.

    Args:
        table: claims, as `claims.collect` returns them.
        links: returns links to details, by the stem of the claim's figure.
    """
    return "\n\n".join(_section(claim, links) for claim in table.itertuples(index=False))


def title_of(claim: Any) -> str:
    """A claim's heading: "Figure 4", "Table 1", "Headline"."""
    return str(claim.artefact).replace("Fig.", "Figure").replace("headline", "Headline")


def anchor_of(claim: Any) -> str:
    """The anchor of a claim's section within the page."""
    return "#" + title_of(claim).lower().replace(" ", "-")


def stem_of(claim: Any) -> str:
    """Name shared by a claim's notebook and table."""
    return "headline" if claim.id == "H" else str(claim.id).lower()


def _section(claim: Any, links: Links) -> str:
    decided, _, found = str(claim.reproduced).partition("; ")
    caption, shown = found_table(found, str(claim.reported))
    return (
        f"### {title_of(claim)}\n\n"
        f"{one_line(str(claim.claim))}: **{claim.verdict}**.\n\n"
        f"- *The paper reports*: {one_line(str(claim.reported))}.\n"
        f"- *Tested on*: {claim.panel} ({claim.executor}).\n"
        f"- *Deciding statement*: {decided.removeprefix('decided by ')}.\n\n"
        f"Found{f' ({caption})' if caption else ''}:\n\n{pipe_table(shown)}\n\n"
        f"{one_line(str(claim.why))}\n\n"
        f"{links(stem_of(claim))}"
    )


def found_table(found: str, reported: str = "") -> "tuple[str, pd.DataFrame]":
    """The findings as a caption and a table with a row for each panel or, if there are fewer panels than names, for each name.

    Args:
        found: values of a claim, separated by semicolons.
        reported: the paper's values; they become a column if they have the same names.
    """
    import pandas as pd

    caption, cells = _cells(found)
    _, theirs = _cells(reported)
    if tails := {tail[1] for value in cells.values() if (tail := _TAIL.search(value))}:
        caption = ", ".join(filter(None, (caption, *tails)))  # follows the last value, but applies to all
        cells, theirs = ({key: _TAIL.sub("", value) for key, value in part.items()} for part in (cells, theirs))
    names = list(dict.fromkeys(name for _, name in cells))
    if {panel for panel, _ in theirs} == {""} and {name for _, name in theirs} <= set(names) - {""}:
        cells = {(_PAPER, name): value for (_, name), value in theirs.items()} | cells
    panels = list(dict.fromkeys(panel for panel, _ in cells))
    if len(panels) >= len(names) and panels != [""]:
        rows = [
            {"panel": panel.replace("/", ", "), **{name or _FOUND: cells.get((panel, name), "-") for name in names}}
            for panel in panels
        ]
    else:
        rows = [{"": name, **{panel or _FOUND: cells.get((panel, name), "-") for panel in panels}} for name in names]
    return caption, pd.DataFrame(rows)


def _cells(text: str) -> tuple[str, Cells]:
    """Values and their common caption, which precedes them up to a colon or to "against"."""
    caption, cells, items = "", Cells(), text.split("; ")
    labelled = all(": " in item and not _PANEL.fullmatch(item) for item in items) and len(items) > 1
    for index, item in enumerate(items):
        listed = list(_LISTED.finditer(item))
        if len(listed) > 1:
            name = f"{item[: listed[0].start()].strip()} {item[listed[-1].end() :].strip()}".strip()
            cells |= {(one["panel"], name): one["value"] for one in listed}
            continue
        head, _, rest = item.partition(": ")
        if rest and labelled:
            cells["", head] = rest
            continue
        if rest and index == 0 and not _PANEL.fullmatch(item):
            caption, item = head, rest
        known = _PANEL.fullmatch(item)
        panel, rest = (known["panel"], known["rest"]) if known else ("", item)
        cells |= {(panel, name): value for name, value in _named(rest).items()}
    first, *others = (name for _, name in cells)
    if not caption and " against " in first and others and not any(" against " in name for name in others):
        caption, _, short = first.rpartition(" ")
        cells = {(panel, short if name == first else name): value for (panel, name), value in cells.items()}
    return caption, cells


def _named(text: str) -> dict[str, str]:
    """Values by name: `TPOT -46%/-38% (A, B), hit rate +14%` holds three of them; a text without names is one unnamed value."""
    values: dict[str, str] = {}
    for part in _COMMA.split(text):
        if shared := _SHARED.fullmatch(part):
            of = shared["of"].split(", ")
            values |= dict(zip((f"{shared['name']}, {one}" for one in of), shared["values"].split("/"), strict=True))
        elif (named := _NAMED.fullmatch(part)) and named["name"]:
            values[named["name"]] = named["value"]
        else:
            return {"": text}
    return values
