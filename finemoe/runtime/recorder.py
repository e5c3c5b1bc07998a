"""`finemoe.record`: generate with an unmodified model and write down its routing as a RoutingTrace (DESIGN 3).

Several requests may generate side by side (left-padded), in any of Transformers' modes of generation; each keeps its own rows, so
that the trace reads as if they had run one by one (docs/metrics.md says what a trace holds in each mode).
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
# What record makes itself, from the prompts.
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
    **generation: Any,
) -> RoutingTrace:
    """Generate for every prompt, greedily unless told otherwise, and record each token's routing.

    Args:
        model: a Transformers MoE model; tokenizer: its tokenizer, padding on the left where batch_size > 1.
        prompts: any iterable of texts, or of conversations (lists of messages with role and content), which go through the
            tokenizer's chat template.
        max_new_tokens, min_new_tokens: bounds on the tokens generated per request.
        batch_size: prompts generated side by side.
        lookahead: strides s, ascending, for which the routers of layers l + s are applied to the residual stream after layer l.
        splits, request_ids: one entry per prompt, kept in the trace.
        generation: what `model.generate` takes besides (do_sample, num_beams, assistant_model, stop_strings, ...); what is not
            named is as the model's own generation_config says, but for do_sample, which is then False.
    Returns:
        A trace with full probabilities (only those of the selected experts, a top-k trace, where Transformers does not hand out a
        router's scores), tokens and semantic embeddings. A request is a returned sequence: with
        num_return_sequences > 1 every prompt gives so many, one after the other, "/0", "/1", ... after its id. The last generated
        token is left out, since generation ends before it is fed, so a request of n prompt and m new tokens has n + m - 1 rows.
    Raises:
        FinemoeError: the model has no MoE layers, or generates in a way that cannot be followed; prompts are empty or no texts,
            padding would be needed but is not possible, the routers cannot be applied ahead, generate refuses its options,
            another thread records the model, or an argument has the wrong length or order.
    """
    texts = as_prompts(prompts)
    layers = find_moe_layers(model)
    _require_numbers(len(layers), lookahead, batch_size=batch_size, max_new_tokens=max_new_tokens)
    names = {name: _entries(name, given, len(texts)) for name, given in (("splits", splits), ("request_ids", request_ids))}
    _require_followable(model, generation)
    _require_tokenizer(tokenizer, batch_size)
    options = _options(model, tokenizer, max_new_tokens, min_new_tokens, generation)
    strides = [int(stride) for stride in lookahead]
    requests: list[_Request] = []
    prompt_of: list[int] = []
    tape = Tape(model, layers, strides)

    def record_all() -> None:
        for begin in _batches(len(texts), batch_size, progress):
            found = _record_batch(model, tape, texts[begin : begin + batch_size], begin, tokenizer, options)
            prompt_of.extend(begin + prompt for prompt, _ in found)
            requests.extend(request for _, request in found)

    while_attached(tape, record_all)
    details = {"model": identity_of(model, layers), "lookahead_strides": tuple(strides)}
    return _assemble(requests, layers[0].num_experts, tape.is_whole, **details, **_named(names, prompt_of))


def _require_numbers(num_layers: int, lookahead: Sequence[int], **counts: int) -> None:
    for name, count in counts.items():
        if not (is_whole(count) and count >= 1):
            raise FinemoeError(f"{name} is {count!r}; it is a whole number, at least 1")
    strides = list(lookahead)
    if not all(is_whole(stride) and 1 <= stride < num_layers for stride in strides) or strides != sorted(set(strides)):
        raise FinemoeError(
            f"lookahead is {strides}; give strides as ascending whole numbers from 1, such as (1, 2, 3), below the number of MoE "
            f"layers, {num_layers}"
        )


def _entries(name: str, given: Iterable[Any], num_prompts: int) -> list[str]:
    """What the trace would refuse, refused before hours of recording."""
    if isinstance(given, str):
        raise FinemoeError(f"{name} is one text; give a list with one entry per prompt")
    entries = list(given)
    if len(entries) not in (0, num_prompts):
        raise FinemoeError(f"{name} has {len(entries)} entries for {num_prompts} prompts")
    for number, entry in enumerate(entries):
        if not (isinstance(entry, str) or is_whole(entry)):
            raise FinemoeError(f"{name} holds {entry!r:.40} for prompt {number}; give a text")
    return [str(entry) for entry in entries]


def _require_followable(model: nn.Module, generation: dict[str, Any]) -> None:
    """Refuse, before any work, models and options that no step of which could be followed."""
    name = type(model).__name__
    if not callable(getattr(model, "generate", None)) or not getattr(model, "can_generate", bool)():
        raise FinemoeError(f"{name} does not generate text; record needs a model with a language-modelling head")
    if model.config.is_encoder_decoder:  # type: ignore[union-attr]
        raise FinemoeError(f"{name} is an encoder-decoder model, whose two streams of tokens record does not support yet")
    if embedding_of(model) is None:
        raise FinemoeError(f"{name} names no embedding layer, so its semantic embeddings cannot be recorded")
    if model.training:
        raise FinemoeError(f"{name} is in training mode, in which dropout and jitter change the routing; call model.eval() first")
    if taken := [key for key in _OWN_INPUTS if key in generation]:
        raise FinemoeError(f"{taken[0]} is not for you to give: record makes it from the prompts")
    if generation.get("cache_implementation") == "paged":
        raise FinemoeError("record cannot follow continuous batching (cache_implementation='paged'); leave it out")


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
    """What `generate` is called with besides the prompts."""
    own = {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens, "pad_token_id": _pad_token(tokenizer)}
    options = {name: value for name, value in own.items() if value is not None} | generation
    if options.get("generation_config") is None:  # what is given there is the caller's word too
        options.setdefault("do_sample", False)
    # Lengths of finished beams come with the dict; of a compiled forward the hooks would be no part.
    return options | {"return_dict_in_generate": True, "disable_compile": True} | tokenizer_option(model, tokenizer, options)


def _batches(num_prompts: int, batch_size: int, progress: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(range(0, num_prompts, batch_size), desc="recording", unit="batch", disable=not progress)


def _record_batch(
    model: nn.Module, tape: Tape, prompts: Sequence[Prompt], first: int, tokenizer: Any, options: dict[str, Any]
) -> list[tuple[int, _Request]]:
    """Every returned sequence as (which prompt of the batch, its rows)."""
    encodings = encode(tokenizer, prompts, first)
    batch = as_batch(model, encodings, _pad_token(tokenizer))
    follower = Follower(model, batch)
    tape.begin(follower)
    output = follower.generate(**options)
    rows = tape.rows()
    return [(one.prompt, _request(one, rows)) for one in follower.sequences(output)]


def _request(sequence: FedSequence, rows: _Request) -> _Request:
    """The rows of one sequence. A step is a forward that fed some of them, a prefill if it fed one of the prompt's."""
    num_prefills = np.searchsorted(np.unique(sequence.forwards), sequence.forwards[sequence.num_prompt - 1], side="right")
    step = np.unique(sequence.forwards, return_inverse=True)[1].reshape(-1)
    found = {name: kept[sequence.rows] for name, kept in rows.items()}
    return found | {"tokens": sequence.tokens, "step": step, "phase": np.where(step < num_prefills, PREFILL, DECODE)}


def _named(names: dict[str, list[str]], prompt_of: list[int]) -> dict[str, tuple[str, ...]]:
    """The entries of each request, of which a prompt may have several; their ids are then told apart."""
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
