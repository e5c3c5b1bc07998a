"""Classifies a forward from its arguments before anything is computed: a prefill, a decode step, or neither; its request; and
which of its rows are padding (docs/metrics.md defines the terms).

A cache identifies a conversation, and every turn of it is a request. The arguments are ambiguous only if several tokens are fed
over a cache that already holds some: these may be the rest of a prompt, a new turn, or drafts to be verified. Then Transformers'
own generation decides, if it is the caller.
"""

import inspect
import itertools
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import Cache, GenerationMixin

from finemoe.runtime.drafts import Drafts

_STEPS_REMEMBERED = 64  # how many steps a sequence of a continuous batch may pause; later, another sequence may match its end
_CACHE_NAMES = ("past_key_values", "cache_params", "past_key_value", "cache")


class Phase(Enum):
    """The kind of an iteration."""

    PREFILL = "a prompt, or as much of it as is fed at once"
    PIECE = "a later piece of a prompt that `generate` feeds in pieces"
    DECODE = "one token per sequence, or drafts that `generate` verifies"
    SEVERAL = "several tokens over a non-empty cache, from a caller that does not reveal what they are"
    UNKNOWN = "prefill and decode in one forward, or unknown"

    @property
    def is_prefill(self) -> bool | None:
        """Whether it is a prefill, as policies see it; None if unknown."""
        return {Phase.PREFILL: True, Phase.PIECE: True, Phase.UNKNOWN: None}.get(self, False)


@dataclass(frozen=True)
class Forward:
    """What is known about a forward.

    Attributes:
        phase: its kind.
        request: number of its request, from 0 on.
        starts_request: whether what policies know of a request starts anew: the request starts with this forward, and is not a
            further turn over a cache that the engine knows.
        rows: indices of the token rows that are not padding, or None if no row is.
        drafts: what it verifies, or None. How many are accepted is known later.
        settled: the drafts that the last forward over the same cache verified, and how many of them were rejected.
    """

    phase: Phase
    request: int
    starts_request: bool
    rows: torch.Tensor | None = None
    drafts: Drafts | None = None
    settled: tuple[Drafts, int] | None = None


class Call:
    """The arguments of one module's forward that determine its phase.

    Args:
        module: the module that is called.
        args, kwargs: the arguments of the call.
        forward: the module's original forward, if another function replaces it.
    """

    def __init__(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        forward: Callable[..., Any] | None = None,
    ) -> None:
        arguments = _bound(module, module.forward if forward is None else forward, args, kwargs)
        self.module = module
        self.embeds = arguments.get("inputs_embeds") if isinstance(arguments.get("inputs_embeds"), torch.Tensor) else None
        self.mask = arguments.get("attention_mask")
        self.cache = _cache_in(arguments)
        self.past_tokens = 0 if self.cache is None else length_of(self.cache)  # before this forward appends to it
        ends, positions, wanted = (arguments.get(name) for name in ("cu_seq_lens_q", "position_ids", "logits_indices"))
        self.packed = None
        if isinstance(ends, torch.Tensor) and isinstance(positions, torch.Tensor):
            self.packed = Packed.of(ends, positions, wanted)

    def padding(self, batch: int, num_tokens: int) -> torch.Tensor | None:
        """[batch, num_tokens] whether a row counts, or None if the arguments contain no padding mask."""
        masks = self.mask.values() if isinstance(self.mask, Mapping) else (self.mask,)  # one mask per kind of attention
        said = (self._counts_by(mask, batch, num_tokens) for mask in masks)
        return next((counts for counts in said if counts is not None), None)

    def _counts_by(self, mask: Any, batch: int, num_tokens: int) -> torch.Tensor | None:
        """What one mask specifies, as in `padding`; a mask with one row applies to every row."""
        past = self.past_tokens or 0
        if not isinstance(mask, torch.Tensor) or mask.ndim < 2 or len(mask) not in (1, batch) or mask.shape[-1] < num_tokens:
            return None
        mask = mask.expand(batch, *mask.shape[1:])
        begin = past if past + num_tokens <= mask.shape[-1] else mask.shape[-1] - num_tokens
        if mask.ndim == 2:
            return mask[:, begin : begin + num_tokens] != 0
        if mask.ndim == 4 and mask.shape[-2] == num_tokens and begin == past:
            own = mask[:, 0, :, begin : begin + num_tokens].diagonal(dim1=-2, dim2=-1)  # a token that counts attends to itself
            return own if own.dtype == torch.bool else own == 0 if own.is_floating_point() else own != 0
        return None


@dataclass(frozen=True)
class Packed:
    """Sequences packed in one row, as continuous batching feeds them; entry i of each field is about sequence i.

    Attributes:
        lengths: number of tokens fed.
        pasts: number of tokens already in the cache.
        is_complete: whether every sequence gets its next token, so that no prompt is cut off.
    """

    lengths: tuple[int, ...]
    pasts: tuple[int, ...]
    is_complete: bool

    @classmethod
    def of(cls, ends: torch.Tensor, positions: torch.Tensor, wanted: Any) -> "Packed":
        """Build it from the cumulative lengths [n + 1], the position of every token, and the tokens with wanted logits, if
        known."""
        bounds, places = ends.tolist(), positions.reshape(-1).tolist()
        spans = [(begin, end) for begin, end in itertools.pairwise(bounds) if end > begin]  # others are filler
        last = {end - 1 for _, end in spans}
        is_complete = not isinstance(wanted, torch.Tensor) or last <= set(wanted.tolist())
        return cls(tuple(end - begin for begin, end in spans), tuple(places[begin] for begin, _ in spans), is_complete)

    @property
    def num_rows(self) -> int:
        """Number of rows that belong to a sequence; the rest is filler."""
        return sum(self.lengths)

    @property
    def ends(self) -> list[int]:
        """Length of each sequence including the tokens that are fed."""
        return [past + length for past, length in zip(self.pasts, self.lengths, strict=True)]


class Progress:
    """Tracks the lengths of the sequences of one continuous batch. A sequence that continues where none had ended is new: it
    has 0 tokens, or a prefix that others have left in the cache."""

    def __init__(self) -> None:
        self._step = 0
        self._ends: dict[int, int] = {}  # length of a sequence -> the last step in which one had it
        self._cut_off: set[int] = set()  # lengths of the prompts that the last step cut off

    def step(self, packed: Packed) -> tuple[Phase, bool]:
        """The phase of the next forward, and whether a sequence starts in it.

        It is a prefill if every sequence is fed its whole prompt, and a decode step if each advances by one token of its own. A
        single token after a cut-off prompt may be the prompt's end.
        """
        starts = any(past not in self._ends for past in packed.pasts)
        is_decode = all(length == 1 for length in packed.lengths) and not starts and self._cut_off.isdisjoint(packed.pasts)
        is_prefill = not any(packed.pasts) and packed.is_complete
        self._step += 1
        known = {end: step for end, step in self._ends.items() if self._step - step <= _STEPS_REMEMBERED}
        self._ends = known | dict.fromkeys(packed.ends, self._step)
        pairs = zip(packed.ends, packed.lengths, strict=True)
        self._cut_off = set() if packed.is_complete else {end for end, length in pairs if length > 1}
        return Phase.PREFILL if is_prefill else Phase.DECODE if is_decode else Phase.UNKNOWN, starts


class Requests:
    """Numbers requests, and determines the request of every forward."""

    def __init__(self) -> None:
        self._numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()  # by cache
        self._progress: weakref.WeakKeyDictionary[Any, Progress] = weakref.WeakKeyDictionary()  # by cache of packed sequences
        self._drafts: weakref.WeakKeyDictionary[Any, Drafts] = weakref.WeakKeyDictionary()  # by cache, until it is fed again
        self._next = 0

    def forward(self, call: Call, batch: int, num_tokens: int) -> Forward:
        """Classify a forward over [batch, num_tokens] tokens."""
        if call.packed is not None and batch == 1:
            return self._packed(call, call.packed, num_tokens)
        step = _generation_step(call.cache)
        phase, is_turn = _phase(call, num_tokens, step)
        known = self._number_of(call.cache)
        counts = call.padding(batch, num_tokens)
        rows = None if counts is None or bool(counts.all()) else counts.flatten().nonzero().flatten()
        number = self._new(call.cache) if known is None or is_turn else known
        drafts, settled = None, self._settled(call)
        if step is not None and step.num_drafts and call.past_tokens is not None:
            drafts = Drafts(number, call.past_tokens, num_tokens, step.num_drafts)
            self._note(self._drafts, call.cache, drafts)
        return Forward(phase, number, known is None or call.past_tokens == 0, rows, drafts, settled)

    def unknown(self) -> Forward:
        """Classify a layer that is called by itself: it counts towards the last request."""
        return Forward(Phase.UNKNOWN, self._next - 1, False) if self._next else Forward(Phase.UNKNOWN, self._new(None), True)

    def remember(self, cache: Any, request: int) -> None:
        """Store a request's cache, which its first forward has made."""
        if cache is not None and self._number_of(cache) is None:
            self._note(self._numbers, cache, request)

    def _packed(self, call: Call, packed: Packed, num_tokens: int) -> Forward:
        progress = self._progress.get(call.cache) if _is_reference(call.cache) else None
        if progress is None:
            self._note(self._progress, call.cache, progress := Progress())
        phase, starts = progress.step(packed)
        rows = None if packed.num_rows == num_tokens else torch.arange(packed.num_rows)
        number = self._number_of(call.cache)
        return Forward(phase, self._new(call.cache) if number is None else number, number is None or starts, rows)

    def _settled(self, call: Call) -> tuple[Drafts, int] | None:
        """The drafts that were fed last over this cache, and how many of them it no longer holds."""
        drafts = self._drafts.pop(call.cache, None) if _is_reference(call.cache) else None
        num_rejected = None if drafts is None or call.past_tokens is None else drafts.num_rejected(call.past_tokens)
        return None if drafts is None or num_rejected is None else (drafts, num_rejected)

    def _number_of(self, cache: Any) -> int | None:
        return self._numbers.get(cache) if _is_reference(cache) else None

    def _new(self, cache: Any) -> int:
        number, self._next = self._next, self._next + 1
        self._note(self._numbers, cache, number)
        return number

    def _note(self, notes: "weakref.WeakKeyDictionary[Any, Any]", cache: Any, value: Any) -> None:
        if _is_reference(cache):
            notes[cache] = value


def cache_of(output: Any) -> Any:
    """The cache in a forward's output, or None."""
    items = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else ()
    return next((item for item in items if isinstance(item, Cache)), None)


def length_of(cache: Any) -> int | None:
    """Number of tokens in a cache (at least 1 if it holds an unknown number of them); None if it cannot be determined."""
    try:
        return int(cache.get_seq_length())
    except (AttributeError, ValueError, TypeError):  # ValueError: it has only states, no tokens
        try:
            return int(cache.has_previous_state())
        except (AttributeError, ValueError, TypeError):
            return None


def _phase(call: Call, num_tokens: int, step: "_GenerationStep | None") -> tuple[Phase, bool]:
    """The phase, and whether a prompt certainly starts: a request's first, or that of a further turn."""
    if call.past_tokens is None:
        return Phase.UNKNOWN, False
    if call.past_tokens == 0:
        return Phase.PREFILL, True
    if step is None:
        return (Phase.DECODE if num_tokens == 1 else Phase.SEVERAL), False
    if not step.feeds_prompt:
        return Phase.DECODE, False
    return (Phase.PIECE, False) if step.is_later_piece else (Phase.PREFILL, True)


class _GenerationStep(NamedTuple):
    """What a `generate` that feeds a cache is about to do."""

    feeds_prompt: bool
    is_later_piece: bool
    num_drafts: int


@cache
def _generation_codes() -> frozenset[Any]:
    names = ("_prefill", "_assisted_decoding", "_sample", "_beam_search")
    functions = [getattr(GenerationMixin, name, None) for name in names]
    return frozenset(inspect.unwrap(function).__code__ for function in functions if function is not None)


def _generation_step(cache: Any) -> _GenerationStep | None:
    """The step of the `generate` that feeds this cache; None if none does or its state is unknown."""
    if cache is None:
        return None
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code in _generation_codes():
            known = frame.f_locals
            if known.get("cache") is not cache or "is_first_iteration" not in known:
                return None
            num_drafts = known.get("candidate_length", 0) if frame.f_code.co_name == "_assisted_decoding" else 0
            return _GenerationStep(bool(known["is_first_iteration"]), known.get("chunk_idx", 0) > 0, num_drafts)
        frame = frame.f_back  # type: ignore[assignment]
    return None


@cache
def _signature_of(forward: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(forward)


def _bound(module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by name, whether given by position or by keyword."""
    try:
        signature = _signature_of(getattr(forward, "__func__", forward))
        bound = signature.bind_partial(module, *args) if hasattr(forward, "__func__") else signature.bind_partial(*args)
    except (TypeError, ValueError):  # the model itself reports this better
        return dict(kwargs)
    return {**bound.arguments, **kwargs}


def _cache_in(arguments: Mapping[str, Any]) -> Any:
    for name in _CACHE_NAMES:
        if arguments.get(name) is not None:
            return arguments[name]
    return next((value for value in arguments.values() if isinstance(value, Cache)), None)


def _is_reference(cache: Any) -> bool:
    return cache is not None and getattr(cache, "__hash__", None) is not None and hasattr(cache, "__weakref__")
