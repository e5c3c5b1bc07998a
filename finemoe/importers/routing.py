"""What a reader finds in a file, and its conversion to a RoutingTrace that does not depend on the file's format.

The experts of a token and layer are sorted by descending weight, equal weights by ascending id; without weights, by ascending id.
Weights are scaled to sum to 1 (sums within 0.002 of 1 stay unchanged). A prompt is step 0, and each further iteration of its
request is the next step.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.paths import MODEL_CONFIGS
from finemoe.traces import DECODE, PREFILL, RoutingTrace

_BLOCK_VALUES = 1 << 20
_ROUNDING = 2e-3  # rounding of sums of weights in half precision; such weights stay unchanged


@dataclass(frozen=True)
class Options:
    """What a user states about a file in addition to its content.

    Attributes:
        num_experts: J. num_layers: L. top_k: K. prompt_tokens: number of rows at the start of every request that are its prompt.
        model: identity of the model. The name of a configuration in data/models/configs, a configuration file or a model folder
            also supplies the sizes.
    """

    num_experts: int | None = None
    num_layers: int | None = None
    top_k: int | None = None
    prompt_tokens: int | None = None
    model: str = ""

    @cached_property
    def of_model(self) -> dict[str, int]:
        """L, J, K and the number of decoder layers of the model's configuration; empty if `model` is only a name."""
        source = _config_path(self.model)
        if source is None:
            return {}
        from finemoe.models.geometry import Geometry

        geometry = Geometry.from_config(source)
        sizes = {"num_layers": geometry.num_layers, "num_experts": geometry.num_experts, "top_k": geometry.experts_per_token}
        return sizes | {"decoder_layers": geometry.num_layers + geometry.dense_layers}

    def size(self, name: str) -> int | None:
        """The given value of "num_layers", "num_experts" or "top_k", or else the model's."""
        given: int | None = getattr(self, name)
        return given if given is not None else self.of_model.get(name)


def _config_path(model: str) -> Path | None:
    shipped = MODEL_CONFIGS / f"{model}.json"
    if model and shipped.is_file():
        return shipped
    return Path(model) if model and Path(model).exists() else None


@dataclass(frozen=True)
class Routing:
    """Routing of T tokens, L MoE layers, K experts, as found in a file.

    Attributes:
        expert_ids: [T, L, K] ints, in any order within K. weights: [T, L, K] in any scale, or None.
        offsets: [R + 1] first row of each request and the end.
        is_prompt: [T] whether a row belongs to the prompt, or None if the file does not state it.
        iteration: [T] ints, equal for rows of one iteration; None if every row after the prompt is an iteration.
        num_experts: J as the file states it, or None.
        probs: [T, L, J] full distributions, or None.
        notes: what a user should know about how the file was read.
    """

    expert_ids: np.ndarray
    weights: np.ndarray | None
    offsets: np.ndarray
    is_prompt: np.ndarray | None = None
    iteration: np.ndarray | None = None
    num_experts: int | None = None
    probs: np.ndarray | None = None
    model: str = ""
    request_ids: tuple[Any, ...] = ()
    expert_bytes: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Imported:
    """A trace and how it was read.

    Attributes:
        experts_from: source of the number of experts: "stated in the file", "given", "the model's configuration", or "the
            greatest id + 1".
    """

    trace: RoutingTrace
    format: str
    experts_from: str
    notes: tuple[str, ...] = field(default=())


def trace_of(found: Routing, options: Options) -> tuple[RoutingTrace, str, tuple[str, ...]]:
    """The trace, the source of its number of experts, and notes for the user.

    Raises:
        FinemoeError: there are no rows, or values that a router cannot produce.
    """
    _require_rows(found)
    num_experts, experts_from = _number_of_experts(found, options)
    ids, probs = ordered(found.expert_ids, found.weights, np.uint8 if num_experts <= 256 else np.uint16, found.probs is None)
    is_prompt, notes = _prompts(found, options)
    trace = RoutingTrace(
        expert_ids=ids,
        expert_probs=probs,
        offsets=found.offsets,
        num_experts=num_experts,
        step=_steps(found.offsets, is_prompt, found.iteration),
        phase=np.where(is_prompt, PREFILL, DECODE).astype(np.uint8),
        probs=found.probs,
        request_ids=_telling(found.request_ids),
        model=options.model or found.model,
        has_weights=found.weights is not None,
        expert_bytes=found.expert_bytes,
    )
    return trace, experts_from, found.notes + notes


def ordered(ids: np.ndarray, weights: np.ndarray | None, dtype: type, is_scaled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Sort experts and their weights in the order that traces use.

    Args:
        ids: [T, L, K]. weights: [T, L, K] of at least 0, or None.
        dtype: type of the returned ids. is_scaled: whether to scale weights to sum to 1 over the K.
    Returns:
        [T, L, K] ids and [T, L, K] float16 weights, equal ones if none are known.
    Raises:
        FinemoeError: weights that cannot be scaled; names row and layer.
    """
    arranged: np.ndarray = np.empty(ids.shape, dtype)
    scaled = np.empty(ids.shape, np.float16)
    if weights is None:
        scaled[:] = 1 / ids.shape[2]
    for rows in blocks(len(ids), ids[0].size):
        if weights is None:
            arranged[rows] = np.sort(ids[rows], axis=-1)
            continue
        block = weights[rows].astype(np.float32)
        _require_weights(block, rows.start)
        order = np.lexsort((ids[rows], -block), axis=-1)
        block = np.take_along_axis(block, order, axis=-1)
        arranged[rows] = np.take_along_axis(ids[rows], order, axis=-1)
        scaled[rows] = _scaled(block) if is_scaled else block
    return arranged, scaled


def _scaled(weights: np.ndarray) -> np.ndarray:
    """Scale weights [n, L, K] to sum to 1, up to rounding."""
    sums = weights.sum(axis=-1, keepdims=True)
    return np.asarray(np.where(np.abs(sums - 1) <= _ROUNDING, weights, weights / sums))


def blocks(num_rows: int, values_per_row: int) -> Iterator[slice]:
    """Slices of rows of about a million values."""
    size = max(1, _BLOCK_VALUES // max(1, values_per_row))
    for begin in range(0, num_rows, size):
        yield slice(begin, min(begin + size, num_rows))


def _require_rows(found: Routing) -> None:
    if found.expert_ids.ndim != 3 or not found.expert_ids.size:
        raise FinemoeError("has no routing; expected the experts of at least one token")


def _require_weights(block: np.ndarray, first_row: int) -> None:
    """Refuse weights [n, L, K] that are not finite, are negative, or are all 0 in a layer."""
    for bad, what in (
        (~np.isfinite(block), "is {}; weights must be finite numbers; leave the column out if none were recorded"),
        (block < 0, "is {}; weights are shares of at least 0: turn logits into probabilities first"),
    ):
        if bad.any():
            index = np.unravel_index(int(np.argmax(bad)), bad.shape)
            raise FinemoeError(f"token {first_row + index[0]}, layer {index[1]}: a weight {what.format(block[index])}")
    if (empty := block.sum(axis=-1) <= 0).any():
        row, layer = np.unravel_index(int(np.argmax(empty)), empty.shape)
        raise FinemoeError(f"token {first_row + row}, layer {layer}: its weights are all 0; leave weights out if there are none")


def _number_of_experts(found: Routing, options: Options) -> tuple[int, str]:
    if found.expert_ids.min() < 0:
        row, layer, slot = np.unravel_index(int(np.argmin(found.expert_ids)), found.expert_ids.shape)
        value = found.expert_ids[row, layer, slot]
        raise FinemoeError(f"token {row}, layer {layer}: expert {value}; ids start at 0, so this token was not recorded")
    needed = int(found.expert_ids.max()) + 1
    if found.num_experts is not None and options.num_experts not in (None, found.num_experts):
        raise FinemoeError(f"states {found.num_experts} experts, not the given {options.num_experts}; leave the number out")
    known = (
        (found.num_experts, "stated in the file"),
        (options.num_experts, "given"),
        (None if options.num_experts or found.num_experts else options.size("num_experts"), "the model's configuration"),
        (needed, "the greatest id + 1"),
    )
    number, source = next((number, source) for number, source in known if number is not None)
    if number < needed:
        row, layer, _ = np.unravel_index(int(np.argmax(found.expert_ids)), found.expert_ids.shape)
        raise FinemoeError(f"token {row}, layer {layer}: expert {needed - 1}, but there are {number} experts ({source})")
    return number, source


def _prompts(found: Routing, options: Options) -> tuple[np.ndarray, tuple[str, ...]]:
    """Which rows belong to prompts, [T], and notes about it."""
    if found.is_prompt is not None:
        if options.prompt_tokens is not None:
            raise FinemoeError("the file itself states which rows are prompts; leave out the number of prompt tokens")
        return found.is_prompt, ()
    lengths = np.diff(found.offsets)
    if options.prompt_tokens is None:
        how = "every row is read as a separate decode step" if found.iteration is None else "every iteration is read as decoding"
        return np.zeros(len(found.expert_ids), dtype=np.bool_), (f"the file does not state which rows are prompts: {how}",)
    place = np.arange(len(found.expert_ids)) - np.repeat(found.offsets[:-1], lengths)
    return place < options.prompt_tokens, ()


def _steps(offsets: np.ndarray, is_prompt: np.ndarray, iteration: np.ndarray | None) -> np.ndarray:
    """[T] iteration numbers within each request, from 0: a prompt is one iteration, as are rows with the same `iteration`."""
    begins = np.ones(len(is_prompt), dtype=np.bool_)
    begins[1:] &= ~(is_prompt[1:] & is_prompt[:-1])
    if iteration is not None:
        begins[1:] &= (iteration[1:] != iteration[:-1]) | (is_prompt[1:] != is_prompt[:-1])
    firsts = offsets[:-1][np.diff(offsets) > 0]
    begins[firsts] = True
    number = np.cumsum(begins)
    return (number - np.repeat(number[firsts], np.diff(np.append(firsts, len(number))))).astype(np.int32)


def _telling(request_ids: tuple[Any, ...]) -> tuple[Any, ...]:
    """Names of requests, or nothing if they are just 0, 1, 2, ..."""
    return () if request_ids == tuple(range(len(request_ids))) else request_ids
