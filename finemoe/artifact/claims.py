"""The paper's results and what this project finds: one `Claim` per artefact, collected into one table.

A single rule gives every verdict (`verdict_of`), from a claim's statements and the cases in which each was found true.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from finemoe.artifact.claims_page import anchor_of, claim_sections, title_of
from finemoe.artifact.markdown import pipe_table
from finemoe.errors import FinemoeError
from finemoe.files import write_text
from finemoe.paths import ROOT

if TYPE_CHECKING:
    import pandas as pd

_FIXED_SPACE = "\N{NO-BREAK SPACE}"  # keeps "Figure 4" on one line of a narrow column
VERDICTS = ("holds", "holds weaker", "does not hold", "not testable here")
# The rule of `verdict_of`, as the pages with verdicts show it.
RULE = (
    "Each claim is split into statements, and each statement is tested case by case, on real routing separately from the "
    "miniatures. A statement about every distance, baseline, model or dataset has one case for each of them; a statement about "
    "a whole (the lowest, a minimum, an order) has one case per panel. A claim *holds* if every statement is true in every case. "
    "It *holds weaker* if every statement is true in more than half of its cases, on each kind of routing separately. Otherwise "
    "it *does not hold*. The deciding statement is the one that is true in the smallest share of its cases. Where values have "
    "95 % intervals, one is *above* or *below* another only if the intervals are apart."
)
# In the order of the paper.
ARTEFACTS = (
    *("T1", "F1b", "F3a", "F3b", "F3c", "F4", "F8", "F9", "F10", "F11"),
    *("F12", "F13", "F14a", "F14b", "F15", "F16a", "F16b", "F17", "F18", "H"),
)


@dataclass(frozen=True)
class Statement:
    """One testable part of a claim.

    Attributes:
        text: the statement in words.
        panel: the routing or models on which it was tested.
        met, cases: the number of cases in which it is true, and of all cases.
    """

    text: str
    panel: str
    met: int
    cases: int

    @classmethod
    def of(cls, text: str, panel: str, flags: Iterable[object]) -> "Statement":
        """Build a statement from whether it is true in each case."""
        found = [bool(flag) for flag in flags]
        return cls(text, panel, sum(found), len(found))

    @property
    def share(self) -> float:
        """The share of the cases in which it is true."""
        return self.met / self.cases

    def __str__(self) -> str:
        return f"{self.text}: {self.met} of {self.cases} ({self.panel})"


def verdict_of(statements: Sequence[Statement]) -> str:
    """The verdict, one of VERDICTS, by RULE; statements without a case are ignored."""
    shares = [statement.share for statement in statements if statement.cases]
    if not shares:
        return "not testable here"
    if min(shares) == 1:
        return "holds"
    return "holds weaker" if min(shares) > 0.5 else "does not hold"


def deciding(statements: Sequence[Statement]) -> str:
    """The statement that decides a verdict, in words: the first of those that are true in the smallest share of cases."""
    tested = [statement for statement in statements if statement.cases]
    return f"decided by {min(tested, key=lambda one: one.share)}" if tested else "nothing could be tested"


@dataclass(frozen=True)
class Claim:
    """One claim of the paper and its outcome.

    Attributes:
        id: one of ARTEFACTS, e.g. "F4"; artefact: the paper's name for it, e.g. "Fig. 4".
        claim: the trend in words.
        reported, reproduced: values, as text with units.
        verdict: one of VERDICTS.
        panel: the model, dataset or panel on which the statements were tested.
        executor: what produced the value (computed, recorded, replayed, measured, paced, simulated).
        why: the reason for the verdict, in one or two sentences.
    """

    id: str
    artefact: str
    claim: str
    reported: str
    reproduced: str
    verdict: str
    panel: str
    executor: str
    why: str

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise FinemoeError(f"claim {self.id}: verdict {self.verdict!r} is none of {', '.join(VERDICTS)}")
        if self.id not in ARTEFACTS:
            raise FinemoeError(f"claim {self.id!r}: unknown id; known: {', '.join(ARTEFACTS)}")
        for field in fields(self):
            if not str(getattr(self, field.name)).strip():
                raise FinemoeError(f"claim {self.id}: {field.name} is empty; fill it in, or write 'none'")

    @classmethod
    def judged(cls, statements: Sequence[Statement], *, reproduced: str, **texts: str) -> "Claim":
        """A claim whose verdict follows from its statements; the deciding number precedes the reproduced values."""
        return cls(verdict=verdict_of(statements), reproduced=f"{deciding(statements)}; {reproduced}", **texts)

    def save(self, path: str | Path) -> "Claim":
        """Write the claim as JSON; relative paths start at the repository root. Returns the claim, for a notebook to show."""
        write_text(ROOT / path, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")
        return self

    def _repr_markdown_(self) -> str:
        """The claim as a notebook shows it."""
        parts = {
            "Paper": self.reported,
            "Reproduced": self.reproduced,
            "Panel": self.panel,
            "Executor": self.executor,
            "Why": self.why,
        }
        return f"**{self.artefact}: {self.verdict}**. {self.claim}.\n\n" + "\n".join(
            f"- *{key}*: {text}" for key, text in parts.items()
        )

    @classmethod
    def load(cls, path: str | Path) -> "Claim":
        """Read a claim that `save` wrote.

        Raises:
            FinemoeError: the file is missing or does not contain a claim.
        """
        try:
            return cls(**json.loads((ROOT / path).read_text(encoding="utf-8")))
        except (OSError, json.JSONDecodeError, TypeError) as error:
            raise FinemoeError(f"{path}: no readable claim ({error}); run the notebook that writes it again") from error


def collect(paths: list[str] | list[Path]) -> "pd.DataFrame":
    """The claims of these files as a table, one row each, in the paper's order.

    Raises:
        FinemoeError: a file is unreadable, or two files have the same id.
    """
    import pandas as pd

    claims = sorted((Claim.load(path) for path in paths), key=lambda claim: ARTEFACTS.index(claim.id))
    ids = [claim.id for claim in claims]
    twice = {id_ for id_ in ids if ids.count(id_) > 1}
    if twice:
        raise FinemoeError(f"several claims have the id {', '.join(sorted(twice))}; remove the stale file")
    return pd.DataFrame([asdict(claim) for claim in claims], columns=[field.name for field in fields(Claim)])


def to_markdown(table: "pd.DataFrame", on_gpu: str, links: Callable[[str], str] | None = None, note: str = "") -> str:
    """The table of claims as a page: an overview, a section for each claim, and the GPU measurements.

    Args:
        table: claims, as `collect` returns them.
        on_gpu: the text of `machines.pages.claims_section`.
        links: returns links to details, by the stem of a figure; by default to the table of that name in the page's folder.
        note: a warning at the top, for settings whose verdicts mean nothing.
    """
    warning = f"> **{note}**\n\n" if note else ""
    return f"# The paper's claims, and what became of them\n\n{warning}{to_sections(table, on_gpu, links or _in_folder)}"


def to_sections(table: "pd.DataFrame", on_gpu: str, links: Callable[[str], str]) -> str:
    """The same page without a title, for docs/claims.md."""
    return (
        f"{len(table)} artefacts: {_counts(table)}. {RULE}\n\n"
        f"{_overview(table)}\n\n"
        f"## Claim by claim\n\n{claim_sections(table, links)}\n\n"
        f"## Measured on a GPU\n\n{on_gpu}"
    )


def decided_by(table: "pd.DataFrame") -> "pd.Series[str]":
    """The statement that decides each claim of a table, in words; `Claim.judged` puts it before the reproduced values."""
    return table.reproduced.str.partition("; ")[0].str.removeprefix("decided by ")


def _overview(table: "pd.DataFrame") -> str:
    """All verdicts as one table."""
    titles = [f"[{title_of(claim)}]({anchor_of(claim)})".replace(" ", _FIXED_SPACE) for claim in table.itertuples(index=False)]
    shown = table[["claim", "verdict", "executor"]].assign(**{"decided by": decided_by(table)})
    shown.insert(0, "artefact", titles)
    return pipe_table(shown)


def _in_folder(stem: str) -> str:
    return f"Table: [{stem}.csv]({stem}.csv). Notebook: `notebooks/figures/{stem}.ipynb`."


def _counts(table: "pd.DataFrame") -> str:
    return ", ".join(f"{verdict}: {int((table.verdict == verdict).sum())}" for verdict in VERDICTS)
