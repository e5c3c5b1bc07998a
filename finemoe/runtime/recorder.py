"""`finemoe.record`: generate with an unmodified model and record its routing as a RoutingTrace (DESIGN 3).

Requests may be generated in batches (left-padded) and in any of Transformers' generation modes. Each request keeps its own rows,
so the trace reads as if the requests had run one after another (docs/metrics.md describes what a trace holds in each mode).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import nn

from finemoe.errors import FinemoeError
from finemoe.interrupts import while_attached
from finemoe.models.layers import find_moe_layers
from finemoe.runtime.following import FedSequence, Follower
from finemoe.runtime.generation import tokenizer_option
from finemoe.runtime.observer import embedding_of
from finemoe.runtime.offloading import identity_of
from finemoe.runtime.prompts import Prompt, as_batch, as_prompts, encode
from finemoe.runtime.tape import Tape
from finemoe.traces import DECODE, PREFILL, RoutingTrace
from finemoe.units import is_whole

_Request = dict[str, np.ndarray]
# Inputs that `record` builds from the prompts.
_OWN_INPUTS = ("inputs", "input_ids", "attention_mask", "inputs_embeds", "position_ids", "past_key_values")


def record(
    model: nn.Module,
    prompts: Iterable[Any],
    *,
    tokenizer: Any,
    max_new_tokens: int,
    min_new_tokens: int | None = None,
    batch_size: int = 1,
    lookahead: Sequence[int] = (),
    progress: bool = False,
    splits: Iterable[str] = (),
    request_ids: Iterable[str] = (),
    keep_interrupted: bool = False,
    **generation: Any,
) -> RoutingTrace:
    """Generate for every prompt, greedily by default, and record the routing of each token.

    Args:
        model: a Transformers MoE model.
        prompts: any iterable of texts or of conversations. A conversation is a list of messages with role and content; the
            tokenizer's chat template is applied to it.
        tokenizer: the model's tokenizer; it must pad on the left if batch_size > 1.
        max_new_tokens, min_new_tokens: bounds on the number of tokens generated per request.
        batch_size: number of prompts generated together.
        lookahead: ascending strides s; for each, the router of layer l + s is applied to the residual stream after layer l.
        progress: show a progress bar.
        splits, request_ids: one entry per prompt, stored in the trace.
        keep_interrupted: return the requests finished so far when Ctrl-C ends the recording; False raises KeyboardInterrupt.
        generation: other arguments of `model.generate` (do_sample, num_beams, assistant_model, stop_strings, ...). Defaults come
            from the model's generation_config, except do_sample, which defaults to False.
    Returns:
        A trace with full probabilities, tokens and semantic embeddings. Where Transformers does not expose a router's scores, it
        holds the probabilities of the selected experts only (a top-k trace). A request is a returned sequence: with
        num_return_sequences > 1, every prompt yields that many consecutive requests, with "/0", "/1", ... appended to its id.
        The last generated token is missing because generation ends before it is fed: a request with n prompt tokens and m new
        tokens has n + m - 1 rows.
    Raises:
        FinemoeError: the model has no MoE layers or generates in a way that cannot be followed, prompts are empty or not texts,
            padding is needed but impossible, the routers cannot be applied ahead, generate refuses its options, another thread
            is recording the model, or an argument has the wrong length or order.
    """
    texts = as_prompts(prompts)
    layers = find_moe_layers(model)
    _require_numbers(len(layers), lookahead, batch_size=batch_size, max_new_tokens=max_new_tokens)
    names = {name: _entries(name, given, len(texts)) for name, given in (("splits", splits), ("request_ids", request_ids))}
    _require_followable(model, generation)
    _require_tokenizer(tokenizer, batch_size)
    options = _options(model, tokenizer, max_new_tokens, min_new_tokens, generation)
    strides = [int(stride) for stride in lookahead]
    recorded: list[tuple[int, _Request]] = []  # which prompt, and its rows
    tape = Tape(model, layers, strides)

    def record_all() -> None:
        for begin in _batches(len(texts), batch_size, progress):
            found = _record_batch(model, tape, texts[begin : begin + batch_size], begin, tokenizer, options)
            recorded.extend([(begin + prompt, request) for prompt, request in found])

    try:
        while_attached(tape, record_all)
    except KeyboardInterrupt:
        if not (keep_interrupted and recorded):
            raise
    requests, prompt_of = [request for _, request in recorded], [prompt for prompt, _ in recorded]
    details = {"model": identity_of(model, layers), "lookahead_strides": tuple(strides)}
    return _assemble(requests, layers[0].num_experts, tape.is_whole, **details, **_named(names, prompt_of))


def _require_numbers(num_layers: int, lookahead: Sequence[int], **counts: int) -> None:
    for name, count in counts.items():
        if not (is_whole(count) and count >= 1):
            raise FinemoeError(f"{name} is {count!r}; give a whole number, at least 1")
    strides = list(lookahead)
    if not all(is_whole(stride) and 1 <= stride < num_layers for stride in strides) or strides != sorted(set(strides)):
        raise FinemoeError(
            f"lookahead is {strides}; give strides as ascending whole numbers from 1, such as (1, 2, 3), below the number of MoE "
            f"layers, {num_layers}"
        )


def _entries(name: str, given: Iterable[Any], num_prompts: int) -> list[str]:
    """Check before hours of recording what the trace would refuse afterwards."""
    if isinstance(given, str):
        raise FinemoeError(f"{name} is one text; give a list with one entry per prompt")
    entries = list(given)
    if len(entries) not in (0, num_prompts):
        raise FinemoeError(f"{name} has {len(entries)} entries for {num_prompts} prompts; give one per prompt")
    for number, entry in enumerate(entries):
        if not (isinstance(entry, str) or is_whole(entry)):
            raise FinemoeError(f"{name} holds {entry!r:.40} for prompt {number}; give a text")
    return [str(entry) for entry in entries]


def _require_followable(model: nn.Module, generation: dict[str, Any]) -> None:
    """Refuse, before any work, models and options that cannot be followed at all."""
    name = type(model).__name__
    if not callable(getattr(model, "generate", None)) or not getattr(model, "can_generate", bool)():
        raise FinemoeError(f"{name} does not generate text; record needs a model with a language-modelling head")
    if model.config.is_encoder_decoder:  # type: ignore[union-attr]
        raise FinemoeError(
            f"{name} is an encoder-decoder model, and record does not support its two token streams; use a decoder-only model"
        )
    if embedding_of(model) is None:
        raise FinemoeError(f"{name} names no embedding layer, so its semantic embeddings cannot be recorded")
    if model.training:
        raise FinemoeError(f"{name} is in training mode, in which dropout and jitter change the routing; call model.eval() first")
    if taken := [key for key in _OWN_INPUTS if key in generation]:
        raise FinemoeError(f"omit {taken[0]}: record builds it from the prompts")
    if generation.get("cache_implementation") == "paged":
        raise FinemoeError("record cannot follow continuous batching (cache_implementation='paged'); omit it")


def _require_tokenizer(tokenizer: Any, batch_size: int) -> None:
    if not callable(tokenizer):
        raise FinemoeError(f"tokenizer is of type {type(tokenizer).__name__}; give the model's own, as AutoTokenizer loads it")
    if batch_size > 1 and (getattr(tokenizer, "padding_side", None) != "left" or _pad_token(tokenizer) is None):
        raise FinemoeError("batches need a tokenizer with a pad token and padding_side='left'; set them, or use batch_size=1")


def _pad_token(tokenizer: Any) -> int | None:
    return getattr(tokenizer, "pad_token_id", None)


def _options(
    model: nn.Module, tokenizer: Any, max_new_tokens: int, min_new_tokens: int | None, generation: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of `generate` in addition to the prompts."""
    own = {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens, "pad_token_id": _pad_token(tokenizer)}
    options = {name: value for name, value in own.items() if value is not None} | generation
    if options.get("generation_config") is None:  # a generation_config is also an explicit choice of the caller
        options.setdefault("do_sample", False)
    # The dict holds the lengths of finished beams. A compiled forward would bypass the hooks.
    return options | {"return_dict_in_generate": True, "disable_compile": True} | tokenizer_option(model, tokenizer, options)


def _batches(num_prompts: int, batch_size: int, progress: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(range(0, num_prompts, batch_size), desc="recording", unit="batch", disable=not progress)


def _record_batch(
    model: nn.Module, tape: Tape, prompts: Sequence[Prompt], first: int, tokenizer: Any, options: dict[str, Any]
) -> list[tuple[int, _Request]]:
    """Every returned sequence as (index of its prompt in the batch, its rows)."""
    encodings = encode(tokenizer, prompts, first)
    batch = as_batch(model, encodings, _pad_token(tokenizer))
    follower = Follower(model, batch)
    tape.begin(follower)
    output = follower.generate(**options)
    rows = tape.rows()
    return [(one.prompt, _request(one, rows)) for one in follower.sequences(output)]


def _request(sequence: FedSequence, rows: _Request) -> _Request:
    """The rows of one sequence. A step is a forward that fed some of them; it is a prefill if it fed a token of the prompt."""
    num_prefills = np.searchsorted(np.unique(sequence.forwards), sequence.forwards[sequence.num_prompt - 1], side="right")
    step = np.unique(sequence.forwards, return_inverse=True)[1].reshape(-1)
    found = {name: kept[sequence.rows] for name, kept in rows.items()}
    return found | {"tokens": sequence.tokens, "step": step, "phase": np.where(step < num_prefills, PREFILL, DECODE)}


def _named(names: dict[str, list[str]], prompt_of: list[int]) -> dict[str, tuple[str, ...]]:
    """The entries of each request. Ids get a suffix where a prompt has several requests."""
    found = {name: [entries[prompt] for prompt in prompt_of] for name, entries in names.items() if entries}
    if "request_ids" in found and len(set(prompt_of)) < len(prompt_of):
        copies = (prompt_of[:number].count(prompt) for number, prompt in enumerate(prompt_of))
        found["request_ids"] = [f"{name}/{copy}" for name, copy in zip(found["request_ids"], copies, strict=True)]
    return {name: tuple(entries) for name, entries in found.items()}


def _assemble(requests: list[_Request], num_experts: int, is_whole: bool, **details: Any) -> RoutingTrace:
    rows = {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}
    of_selected = np.take_along_axis(rows["probs"], rows["selected"], axis=-1)
    if not is_whole:  # as in any top-k trace, the K known probabilities sum to 1
        of_selected = (of_selected / of_selected.sum(axis=-1, keepdims=True, dtype=np.float32)).astype(np.float16)
    order = np.argsort(-of_selected, axis=-1, kind="stable")
    table, index = np.unique(rows["embeddings"], axis=0, return_inverse=True)
    if "ahead_ids" in rows:  # [T, L, S, M] here, [T, S, L, M] in a trace
        details |= {
            "lookahead_ids": _as_ids(rows["ahead_ids"].swapaxes(1, 2), num_experts),
            "lookahead_probs": rows["ahead_probs"].swapaxes(1, 2),
        }
    return RoutingTrace(
        expert_ids=_as_ids(np.take_along_axis(rows["selected"], order, axis=-1), num_experts),
        expert_probs=np.take_along_axis(of_selected, order, axis=-1),
        offsets=np.cumsum([0, *(len(request["tokens"]) for request in requests)]).astype(np.int64),
        num_experts=num_experts,
        step=rows["step"].astype(np.int32),
        phase=rows["phase"].astype(np.uint8),
        probs=rows["probs"] if is_whole else None,
        tokens=rows["tokens"].astype(np.int32),
        embedding_table=table,
        embedding_index=index.reshape(-1).astype(np.int32),
        **details,
    )


def _as_ids(ids: np.ndarray, num_experts: int) -> np.ndarray:
    return ids.astype(np.uint8 if num_experts <= 256 else np.uint16)
