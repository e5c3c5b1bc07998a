"""Modes of generation that `record` follows, and what a plain forward says of the tokens that a recorded request holds."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from finemoe.models.layers import find_moe_layers
from finemoe.runtime.gates import scores_of
from finemoe.traces import RoutingTrace

TOLERANCE = 2e-3  # half precision, and another order of summation
FIRST, LAST = 40, 88  # tokens that mean nothing special to any family


class Characters:
    """A tokenizer that turns every character into a token, and back."""

    padding_side, pad_token_id, eos_token_id = "left", 0, None
    chat_template = None

    def __call__(self, prompts, return_tensors="pt", padding=False):
        rows = [[FIRST + ord(character) % (LAST - FIRST) for character in prompt] for prompt in prompts]
        width = max(map(len, rows))
        padded = torch.tensor([[self.pad_token_id] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return {"input_ids": padded, "attention_mask": mask}

    def tokens(self, prompt: str) -> list[int]:
        return self([prompt])["input_ids"][0].tolist()


@dataclass(frozen=True)
class Mode:
    """How to generate: `options` of generate, for prompts side by side; `returned` sequences come of each prompt."""

    options: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 1
    returned: int = 1
    by_config: bool = True  # whether the model's generation_config can say it too


MODES: dict[str, Mode] = {
    "greedy": Mode(),
    "greedy, padded": Mode(batch_size=3),
    "sampling": Mode({"do_sample": True, "top_k": 30}, batch_size=3, by_config=False),
    "sampled sequences": Mode({"do_sample": True, "num_return_sequences": 3}, batch_size=2, returned=3, by_config=False),
    "cache off": Mode({"use_cache": False}),
    "cache off, padded": Mode({"use_cache": False}, batch_size=3),
    "beams": Mode({"num_beams": 3}),
    "beams, padded": Mode({"num_beams": 3}, batch_size=3),
    "beams, cache off": Mode({"num_beams": 2, "use_cache": False}, batch_size=2),
    "returned beams": Mode({"num_beams": 4, "num_return_sequences": 3, "length_penalty": -2.0}, batch_size=2, returned=3),
    "sampled beams": Mode({"num_beams": 3, "do_sample": True}, batch_size=2, by_config=False),
    "guidance": Mode({"guidance_scale": 2.5}),
    "guidance, padded": Mode({"guidance_scale": 2.5}, batch_size=3),
    "guidance, cache off": Mode({"guidance_scale": 0.3, "use_cache": False}),
    "prefill in pieces": Mode({"prefill_chunk_size": 4}),
    "prefill in pieces, padded": Mode({"prefill_chunk_size": 3}, batch_size=3),
    "prefill in pieces, beams": Mode({"prefill_chunk_size": 3, "num_beams": 2}, batch_size=2),
    "prompt lookup": Mode({"prompt_lookup_num_tokens": 3}),
    "static cache": Mode({"cache_implementation": "static"}),
    "static cache, padded": Mode({"cache_implementation": "static"}, batch_size=3),
    "minimum length": Mode({"min_length": 16}, batch_size=3),
    "penalties": Mode({"repetition_penalty": 1.7, "no_repeat_ngram_size": 2, "renormalize_logits": True}, batch_size=3),
    "forced end": Mode({"forced_eos_token_id": 41}, batch_size=2),
    "everything returned": Mode({"output_scores": True, "output_logits": True, "return_dict_in_generate": True}, batch_size=2),
}
PROMPTS = ["hello there", "abcabcabcabc", "some words"]


def side_by_side(prompts: list[str]) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Prompts as a batch padded on the left, and the columns of padding before each."""
    rows = [Characters().tokens(prompt) for prompt in prompts]
    pads = [max(map(len, rows)) - len(row) for row in rows]
    tokens = [[0] * pad + row for pad, row in zip(pads, rows, strict=True)]
    mask = [[0] * pad + [1] * len(row) for pad, row in zip(pads, rows, strict=True)]
    return {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask)}, pads


@contextmanager
def configured(model: PreTrainedModel, options: dict[str, Any]) -> Iterator[None]:
    """The model's own generation_config says the options, for the time being."""
    before = model.generation_config
    model.generation_config = GenerationConfig(**before.to_diff_dict() | options)
    try:
        yield
    finally:
        model.generation_config = before


@dataclass(frozen=True)
class Said:
    """What forwards say of their tokens, by layer: maps [n, J] (None where no router tells) and the experts selected [n, K]."""

    probs: list[np.ndarray | None]
    selected: list[np.ndarray]


@contextmanager
def overheard(model: PreTrainedModel) -> Iterator[list[Said]]:
    """What every forward inside says, heard by PyTorch's own hooks."""
    layers, heard = find_moe_layers(model), list[Said]()
    outputs: dict[int, Any] = {}
    selected: dict[int, torch.Tensor] = {}

    def finish(*_):
        scores = [scores_of(outputs.get(layer.index), selected[layer.index]) for layer in layers]
        chosen = [selected[layer.index].numpy() for layer in layers]
        distributions = [_distribution(one, layer.num_experts) for one, layer in zip(scores, layers, strict=True)]
        maps = [None if one is None else ranked(one, experts) for one, experts in zip(distributions, chosen, strict=True)]
        heard.append(Said(maps, chosen))

    handles = [model.register_forward_hook(finish)]
    for layer in layers:
        note = partial(selected.__setitem__, layer.index)
        handles.append(layer.experts.register_forward_pre_hook(lambda m, args, note=note: note(args[1])))
        if layer.router is not None:
            say = partial(outputs.__setitem__, layer.index)
            handles.append(layer.router.register_forward_hook(lambda m, args, out, say=say: say(out)))
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def plain(model: PreTrainedModel, tokens: np.ndarray) -> Said:
    """What one forward over a text says."""
    with overheard(model) as heard, torch.no_grad():
        model(torch.tensor(tokens[None].astype(np.int64)), use_cache=False)
    return heard[0]


def _distribution(scores: torch.Tensor | None, num_experts: int) -> np.ndarray | None:
    if scores is None or scores.shape[-1] != num_experts:
        return None
    scores = scores.float().reshape(-1, num_experts)
    is_distribution = bool((scores >= 0).all()) and torch.allclose(scores.sum(dim=-1), torch.ones(len(scores)), atol=1e-3)
    return (scores if is_distribution else torch.softmax(scores, dim=-1)).numpy()


def ranked(probs: np.ndarray, selected: np.ndarray) -> np.ndarray:
    """Maps [n, J] as docs/metrics.md defines them, row by row: where an unselected expert exceeds a selected one in half
    precision, the greatest values go to the selected experts and the rest to the others, in the order they had."""
    maps = probs.copy()
    for row, experts in zip(maps, selected, strict=True):
        half, chosen = row.astype(np.float16), sorted(set(experts.tolist()))
        others = [expert for expert in range(len(row)) if expert not in chosen]
        if others and half[chosen].min() < half[others].max():
            order = sorted(chosen, key=lambda expert: -half[expert]) + sorted(others, key=lambda expert: -half[expert])
            row[order] = np.sort(row)[::-1]
    return maps


def differences(model: PreTrainedModel, trace: RoutingTrace) -> list[float]:
    """By request, the greatest difference of a recorded probability from the plain forward's; 9 where other experts are named."""
    return [difference(trace, one, plain(model, trace.tokens[trace.rows_of(one)])) for one in range(trace.num_requests)]


def difference(trace: RoutingTrace, request: int, said: Said) -> float:
    """The same for one request and what was said of its tokens."""
    rows, worst = trace.rows_of(request), 0.0
    for layer in range(trace.num_layers):
        if said.probs[layer] is not None:
            worst = max(worst, float(np.abs(said.probs[layer] - trace.probs[rows, layer].astype(np.float32)).max()))
        recorded = np.sort(trace.expert_ids[rows, layer].astype(np.int64), axis=-1)
        worst = worst if np.array_equal(np.sort(said.selected[layer], axis=-1), recorded) else 9.0
    return worst
