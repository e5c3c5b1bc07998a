"""Routing known only per request: each expert's share of a request's tokens.

The public sample is Mixtral-8x7B on MMLU's 14,042 test questions (publisher on GitHub: ajtejankar/mixtral-vis-moe). Each prompt
starts with five worked examples of the question's subject, so only prompts of the same subject can be compared.
"""

import gzip
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.paths import ROOT

MODEL, TOP_K = "mixtral-8x7b", 2
_MAX_SUM_ERROR = 2e-3  # rounding of half precision over 8 shares
_LETTERS = "ABCD"
_UNREADABLE = (OSError, EOFError, ValueError, BadZipFile, zlib.error)


@dataclass(frozen=True, eq=False)
class RequestTable:
    """Expert shares of R requests, L MoE layers, J experts.

    Attributes:
        fractions: [R, L, J] float32, share of a request's expert activations that went to each expert; sums to 1 over J.
        num_tokens: [R] ints, tokens of each request.
        top_k: K, experts activated per token and layer.
        groups: a name for each request's group; requests of different groups are never compared.
        texts: the question of each request, without what its group has in common.
    """

    fractions: np.ndarray
    num_tokens: np.ndarray
    top_k: int
    groups: tuple[str, ...]
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_shapes(self)
        _check_values(self)

    @property
    def counts(self) -> np.ndarray:
        """[R, L, J] float32 whole numbers: number of tokens of a request that activated each expert."""
        return np.rint(self.fractions * (self.num_tokens[:, None, None] * self.top_k)).astype(np.float32)

    def counts_beyond_shared(self) -> np.ndarray:
        """`counts` minus the smallest count in the request's group, [R, L, J].

        The common beginning of a group's prompts is routed alike in all of them (attention is causal), so the smallest count
        includes it. The smallest count also includes whatever all of the prompts' own texts activate, which is subtracted too.
        """
        counts = self.counts
        for rows in self.rows_of_groups().values():
            counts[rows] -= counts[rows].min(axis=0)
        return counts

    def rows_of_groups(self) -> dict[str, np.ndarray]:
        """The rows of each group, groups in the order of their first request."""
        names = np.array(self.groups)
        return {name: np.flatnonzero(names == name) for name in dict.fromkeys(self.groups)}

    def without(self, groups: tuple[str, ...]) -> "RequestTable":
        """The table without the requests of the given groups."""
        rows = [row for row, name in enumerate(self.groups) if name not in groups]
        kept = [tuple(values[row] for row in rows) for values in (self.groups, self.texts)]
        return RequestTable(self.fractions[rows], self.num_tokens[rows], self.top_k, *kept)


def sample_folder() -> Path:
    """Path of the development sample: in $FINEMOE_SHARED_DATA, or next to the checkout."""
    folder = Path(os.environ.get("FINEMOE_SHARED_DATA", ROOT.parent / "shared" / "data"))
    return folder / "routing" / MODEL


def load_mmlu(arrays: str | Path, questions: str | Path) -> RequestTable:
    """Load the public Mixtral-8x7B table, grouped by subject.

    Args:
        arrays: NPZ with `frac` [R, L, J] and `n_tokens` [R].
        questions: gzipped JSON lines in the same order, with `subject`, `question`, `choices`.
    Raises:
        FinemoeError: a file is missing or unreadable, or a row is invalid; names the row.
    """
    fractions, num_tokens = _read_arrays(Path(arrays))
    rows = _read_questions(Path(questions))
    groups = tuple(str(row["subject"]) for row in rows)
    texts = tuple(_as_asked(row) for row in rows)
    return RequestTable(fractions.astype(np.float32), num_tokens, TOP_K, groups, texts)


def _read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path) as arrays:
            return arrays["frac"], arrays["n_tokens"]
    except (*_UNREADABLE, KeyError) as error:
        raise FinemoeError(f"{path}: not a request-level table with frac and n_tokens ({error})") from error


def _read_questions(path: Path) -> list[dict[str, Any]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:  # not splitlines(), which also cuts at U+2028
            rows = [json.loads(line) for line in lines]
    except _UNREADABLE as error:
        raise FinemoeError(f"{path}: not gzipped JSON lines ({error})") from error
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not {"subject", "question", "choices"} <= set(row):
            raise FinemoeError(f"{path}: row {number} lacks subject, question or choices")
    return rows


def _as_asked(row: dict[str, Any]) -> str:
    choices = [f"{letter}. {choice}" for letter, choice in zip(_LETTERS, row["choices"], strict=False)]
    return "\n".join([row["question"], *choices])


def _check_shapes(table: RequestTable) -> None:
    shape = table.fractions.shape
    if len(shape) != 3:
        raise FinemoeError(f"fractions must be [R, L, J], not {list(shape)}")
    for name in ("num_tokens", "groups", "texts"):
        if len(getattr(table, name)) != shape[0]:
            raise FinemoeError(f"{name} has {len(getattr(table, name))} rows, fractions {shape[0]}")
    if not 1 <= table.top_k <= shape[2]:
        raise FinemoeError(f"top_k is {table.top_k}, with {shape[2]} experts")


def _check_values(table: RequestTable) -> None:
    shares = table.fractions.reshape(len(table.fractions), -1)
    _refuse_rows(np.isnan(shares).any(axis=1), "fractions are NaN")
    _refuse_rows(shares.min(axis=1) < 0, "fractions are negative")
    sums = table.fractions.sum(axis=-1, dtype=np.float64)
    _refuse_rows((np.abs(sums - 1) > _MAX_SUM_ERROR).any(axis=1), "fractions do not sum to 1 over the experts")
    _refuse_rows(np.atleast_1d(table.num_tokens < 1), "num_tokens is below 1")


def _refuse_rows(is_bad: np.ndarray, what: str) -> None:
    if is_bad.any():
        raise FinemoeError(f"{what} in row {int(np.argmax(is_bad))}")
