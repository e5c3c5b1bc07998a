"""Column names in tables of routing, and column values as the blocks that `long_rows` takes.

Names match regardless of case; spaces, dots and hyphens count as underscores. A table needs a layer, experts, and a step or a
token; if it has both, rows with the same step are one iteration.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.importers.long_rows import Block, Expected

Column = Any  # n values: strings of a CSV; an array or lists of Parquet or JSON lines
SYNONYMS = {  # the role of a column, and its accepted names
    "request": "request request_id request_idx request_index req req_id req_idx seq seq_id seq_idx sequence sequence_id turn "
    "prompt_id sample sample_id conversation conversation_id",
    "step": "step step_id step_idx iteration iter decode_step forward forward_id",
    "token": "token token_idx token_index token_pos token_position position pos position_id",
    "layer": "layer layer_id layer_idx layer_index moe_layer block block_idx",
    "expert": "expert expert_id expert_idx expert_index experts expert_ids expert_indices selected_expert selected_experts "
    "topk_id topk_ids topk_indices routed_experts",
    "weight": "weight weights expert_weight expert_weights gate_weight gate_weights routing_weight routing_weights topk_weight "
    "topk_weights prob probs probability probabilities expert_prob expert_probs gate_prob gate_probs score scores",
    "phase": "phase stage is_prefill is_prompt",
}
_ROLES = {name: role for role, names in SYNONYMS.items() for name in names.split()}
_PROMPT = {"prefill", "prompt", "0", "0.0"}
_DECODE = {"decode", "decoding", "generation", "generate", "1", "1.0"}
_TRUE, _FALSE = {"true", "1", "1.0"}, {"false", "0", "0.0"}


@dataclass(frozen=True)
class Roles:
    """The columns for each role. experts, weights: one name, or one for each of K places."""

    layer: str
    experts: tuple[str, ...]
    weights: tuple[str, ...] = ()
    request: str | None = None
    step: str | None = None
    token: str | None = None
    phase: str | None = None

    @property
    def expected(self) -> Expected:
        return Expected(has_steps=self.step is not None and self.token is not None)

    def names(self) -> tuple[str, ...]:
        """Every column that must be read."""
        keys = (self.request, self.step, self.token, self.phase, self.layer)
        return tuple(name for name in (*keys, *self.experts, *self.weights) if name is not None)


def roles_of(names: Iterable[str], is_nested: bool = False) -> Roles:
    """Assign the columns of a table to roles, by their names.

    Args:
        names: the column names. is_nested: the experts of a token are nested lists, so there is no layer column.
    Raises:
        FinemoeError: a role has no column, or has two.
    """
    found: dict[str, dict[int, str]] = {}
    for name in names:
        role, place = _role_of(name)
        if role is None:
            continue
        if place in found.setdefault(role, {}):
            raise FinemoeError(f"columns {found[role][place]!r} and {name!r} both hold the {role}; leave one out")
        found[role][place] = name
    single = {role: places[-1] for role, places in found.items() if -1 in places}
    experts, weights = (_wide(found.get(role, {})) for role in ("expert", "weight"))
    if not experts or ("layer" not in single and not is_nested):
        missing = "expert" if not experts else "layer"
        told = ", ".join(names) or "none"
        raise FinemoeError(f"no column holds the {missing}; its columns are {told}; name one '{missing}'")
    if not {"step", "token"} & set(single) and not is_nested:
        raise FinemoeError("no column numbers the tokens; name one 'token' (the position in its request) or 'step'")
    if weights and len(weights) != len(experts):
        raise FinemoeError(f"there are {len(experts)} columns of experts, but {len(weights)} of weights")
    keys = {role: single.get(role) for role in ("request", "step", "token", "phase")}
    return Roles(single.get("layer", ""), experts, weights, **keys)


def names_experts(names: Iterable[str]) -> bool:
    """Whether one of these columns holds experts."""
    return any(_role_of(name)[0] == "expert" for name in names)


def _role_of(name: str) -> tuple[str | None, int]:
    """A column's role, and its number among the columns of experts or weights; -1 if it has none."""
    plain = re.sub(r"[\s.\-]+", "_", name.strip().lower())
    if plain in _ROLES:
        return _ROLES[plain], -1
    numbered = re.fullmatch(r"([a-z_]*[a-z])_?(\d+)", plain)
    role = _ROLES.get(numbered[1]) if numbered else None
    return (role, int(numbered[2])) if numbered and role in ("expert", "weight") else (None, -1)


def _wide(places: Mapping[int, str]) -> tuple[str, ...]:
    """A single column, or the numbered columns in the order of their numbers."""
    if -1 in places and len(places) > 1:
        raise FinemoeError(f"columns {places[-1]!r} and {places[max(places)]!r} both hold experts or weights; leave one out")
    return tuple(places[place] for place in sorted(places))


def block_of(roles: Roles, columns: Mapping[str, Column], first_row: int) -> Block:
    """Convert n rows of a table to a block.

    Args:
        columns: n values, strings or arrays, of each column that `roles` names.
        first_row: number of the first row, counted from 1.
    Raises:
        FinemoeError: a value is invalid for its column; names the row.
    """

    def numbers(name: str | None) -> np.ndarray:
        return zeros if name is None else whole(name, columns[name], first_row)

    zeros = np.zeros(len(columns[roles.layer]), dtype=np.int64)
    expert = np.stack([numbers(name) for name in roles.experts], axis=1)
    require_ids(expert, first_row)
    return Block(
        first_row=first_row,
        request=zeros if roles.request is None else requests_of(columns[roles.request]),
        step=numbers(roles.step),
        token=numbers(roles.token),
        layer=numbers(roles.layer),
        expert=expert.astype(np.uint16),
        weight=_weights(roles, columns, first_row),
        is_prompt=None if roles.phase is None else prompts_of(roles.phase, columns[roles.phase], first_row),
    )


def whole(name: str, values: Column, first_row: int) -> np.ndarray:
    """Convert to [n] int64 whole numbers of at least 0.

    Raises:
        FinemoeError: a value is not a whole number or is negative; names the row.
    """
    try:
        if _are_texts(values):
            numbers = np.fromiter(map(int, values), np.int64, len(values))
        else:
            numbers = np.asarray(values).astype(np.int64, casting="same_kind")
    except (ValueError, OverflowError, TypeError):
        numbers = np.array([_whole(name, value, first_row + row) for row, value in enumerate(values)], dtype=np.int64)
    if (numbers < 0).any():
        row = int(np.argmax(numbers < 0))
        raise FinemoeError(f"row {first_row + row}: {name} is {numbers[row]}; it counts from 0, so this row was not recorded")
    return numbers


def _are_texts(values: Column) -> bool:
    """Whether the values are Python strings, as from a CSV, which Python parses faster than NumPy."""
    return not isinstance(values, np.ndarray) and set(map(type, values)) == {str}


def _whole(name: str, value: Any, row: int) -> int:
    try:
        number = float(value)
        if number.is_integer() and abs(number) < 1 << 53:
            return int(number)
    except (TypeError, ValueError):
        pass
    shown = repr(value) if isinstance(value, str) else value
    raise FinemoeError(f"row {row}: {name} is {shown}, which is not a whole number")


def require_ids(expert: np.ndarray, first_row: int) -> None:
    """Refuse ids [n, ...] that exceed 16 bits, naming their row."""
    if expert.size and expert.max() > np.iinfo(np.uint16).max:
        row = int(np.argmax(expert.reshape(len(expert), -1).max(axis=1) > np.iinfo(np.uint16).max))
        raise FinemoeError(f"row {first_row + row}: expert {expert[row].max()}; no layer has so many")


def requests_of(values: Column) -> np.ndarray:
    """[n] names of requests: whole numbers or strings."""
    array = np.asarray(values)
    return array if array.dtype.kind in "iuU" else array.astype(str)


def _weights(roles: Roles, columns: Mapping[str, Column], first_row: int) -> np.ndarray | None:
    """[n, M] float32; None if no weights were recorded (no column, or an empty one)."""
    if not roles.weights:
        return None
    return settled_weights(np.stack([real(name, columns[name], first_row) for name in roles.weights], axis=1), first_row)


def settled_weights(weights: np.ndarray, first_row: int) -> np.ndarray | None:
    """Return weights [n, M] unchanged, or None if all are NaN, which recorders write if they had none.

    Raises:
        FinemoeError: some are NaN, infinite or negative; names the row.
    """
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if not wrong.any():
        return weights
    if np.isnan(weights).all():
        return None
    row = int(np.argmax(wrong.any(axis=1)))
    value = weights[row][wrong[row]][0]
    raise FinemoeError(
        f"row {first_row + row}: a weight is {value}; weights are shares of at least 0, given in every row or in none"
    )


def real(name: str, values: Column, first_row: int) -> np.ndarray:
    """Convert to [n] float32; an empty cell is NaN.

    Raises:
        FinemoeError: a value is not a number; names the row.
    """
    try:
        numbers = np.fromiter(map(float, values), np.float64, len(values)) if _are_texts(values) else np.asarray(values)
        with np.errstate(over="ignore"):
            return numbers.astype(np.float32)
    except (ValueError, TypeError):
        with np.errstate(over="ignore"):
            return np.array([_real(name, value, first_row + row) for row, value in enumerate(values)]).astype(np.float32)


def _real(name: str, value: Any, row: int) -> float:
    try:
        return float("nan" if value is None or value == "" else value)
    except (TypeError, ValueError):
        raise FinemoeError(f"row {row}: {name} is {value!r}, which is not a number") from None


def prompts_of(name: str, values: Column, first_row: int) -> np.ndarray:
    """[n] bools: whether a row belongs to a prompt. A phase is "prefill" or "decode", or 0 or 1 for them; `is_prefill` is 1 for a
    prompt.

    Raises:
        FinemoeError: a value is something else; names the row.
    """
    is_question = name.strip().lower().startswith("is_")
    prompt, decode = (_TRUE, _FALSE) if is_question else (_PROMPT, _DECODE)
    texts, places = np.unique(np.asarray(values).astype(str), return_inverse=True)
    plain = [text.strip().lower() for text in texts]
    for number, text in enumerate(plain):
        if text not in prompt | decode:
            row = first_row + int(np.argmax(places == number))
            raise FinemoeError(
                f"row {row}: {name} is {str(texts[number])!r}; expected {'true or false' if is_question else 'prefill or decode'}"
            )
    return np.array([text in prompt for text in plain], dtype=np.bool_)[places]
