"""The claims as an HTML table, which `snakemake --report` shows in the browser."""

from html import escape
from typing import TYPE_CHECKING

from finemoe.artifact.claims import RULE, decided_by

if TYPE_CHECKING:
    import pandas as pd

_STYLE = (
    "body{font-family:sans-serif;margin:1.5em;line-height:1.4}table{border-collapse:collapse;font-size:90%}"
    "td,th{border:1px solid #bbb;padding:.4em .6em;text-align:left;vertical-align:top}th{background:#eee}"
    ".warning{font-weight:bold}"
)


def claims_html(table: "pd.DataFrame", note: str = "") -> str:
    """A self-contained page with one row for each claim.

    Args:
        table: claims, as `claims.collect` returns them.
        note: a warning at the top, for settings whose verdicts mean nothing.
    """
    shown = table[["artefact", "claim", "reported", "verdict", "executor", "why"]].copy()
    shown.insert(4, "decided by", decided_by(table))
    warning = f'<p class="warning">{escape(note)}</p>' if note else ""
    rows = shown.to_html(index=False, border=0)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>The paper\'s claims</title><style>{_STYLE}</style>'
        f"<h1>The paper's claims</h1>{warning}<p>{escape(RULE.replace('*', ''))}</p>{rows}</html>\n"
    )
