"""`finemoe.record`: generate with an unmodified model and write down its routing as a RoutingTrace (DESIGN 3).

Several requests may generate side by side (left-padded); each keeps its own rows, so the trace reads as if they had run one by
one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from finemoe.errors import FinemoeError
from finemoe.maps.expert_map import lookahead_width, top_ids
from finemoe.runtime.gates import GateOutput
from finemoe.runtime.layers import MoELayer, find_moe_layers, scores_of
from finemoe.runtime.lookahead import AheadOutput, Choice, RoutersAhead
from finemoe.runtime.observer import Observer
from finemoe.runtime.offloading import identity_of
from finemoe.traces import DECODE, PREFILL, RoutingTrace
from finemoe.units import is_whole


@dataclass
class _Step:
    """One forward of a batch: per-token arrays of all its rows, padding included."""

    embeddings: np.ndarray
    gates: list[np.ndarray] = field(default_factory=list)  # per layer [rows, J]
    ahead_ids: list[np.ndarray] = field(default_factory=list)  # per layer [rows, strides, M], as in a RoutingTrace
    ahead_probs: list[np.ndarray] = field(default_factory=list)
    selected: list[np.ndarray] = field(default_factory=list)  # per layer [rows, K]


class _Tape:
    """Collects the forwards of one generation."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []
        self._router_output: Any = None

    def on_forward_start(self) -> None:
        return None

    def on_start(self, embeddings: torch.Tensor, is_prefill: bool, rows: torch.Tensor | None) -> None:
        self.steps.append(_Step(embeddings.float().cpu().numpy()))

    def on_router(self, layer: int, output: Any) -> None:
        self._router_output = output

    def on_forward_end(self, is_complete: bool) -> bool:
        return True

    def on_experts(self, layer: MoELayer, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> None:
        """What the experts were really called with: the activated set is taken here, not from the router."""
        selected = top_k_index.cpu().numpy()
        scores, self._router_output = scores_of(self._router_output, top_k_index), None
        gate = GateOutput(layer.index, layer.num_experts, layer.num_experts, scores, selected, top_k_weights)
        self.steps[-1].gates.append(gate.distribution(None))
        self.steps[-1].selected.append(selected)

    def on_ahead(self, choices: Sequence[Choice | None], targets: Sequence[int], num_experts: int) -> None:
        """What the routers applied ahead gave after a layer, for every stride."""
        step = self.steps[-1]
        said = AheadOutput(choices, targets, num_experts, kept=num_experts)
        probs = said.distributions(None, len(step.embeddings)).transpose(1, 0, 2)
        ids = top_ids(probs, lookahead_width(num_experts, step.selected[-1].shape[-1]))
        ids[:, [place for place, one in enumerate(choices) if one is None]] = 0
        step.ahead_ids.append(_as_ids(ids, num_experts))
        step.ahead_probs.append(np.take_along_axis(probs, ids, axis=-1).astype(np.float16))


def record(
    model: nn.Module,
    prompts: Sequence[str],
    *,
    tokenizer: Any,
    max_new_tokens: int,
    min_new_tokens: int | None = None,
    batch_size: int = 1,
    lookahead: Sequence[int] = (),
    progress: bool = False,
    splits: Sequence[str] = (),
    request_ids: Sequence[str] = (),
) -> RoutingTrace:
    """Generate greedily for every prompt and record each token's routing.

    Args:
        model: a Transformers MoE model; tokenizer: its tokenizer, padding on the left where batch_size > 1.
        max_new_tokens, min_new_tokens: bounds on the tokens generated per request.
        batch_size: requests generated side by side.
        lookahead: strides s, ascending, for which the routers of layers l + s are applied to the residual stream after layer l.
        splits, request_ids: one entry per prompt, kept in the trace.
    Returns:
        A trace with full probabilities, tokens and semantic embeddings. The last generated token was never fed in, so a request
        of n prompt and m new tokens has n + m - 1 rows.
    Raises:
        FinemoeError: the model has no MoE layers, prompts are empty, padding would be needed but is not possible, the routers
            cannot be applied ahead, or an argument has the wrong length or order.
    """
    if isinstance(prompts, str):
        raise FinemoeError("record takes a list of prompts, not one text; write [prompt]")
    layers = find_moe_layers(model)
    _require_numbers(len(layers), lookahead, batch_size=batch_size, max_new_tokens=max_new_tokens)
    lookahead = [int(stride) for stride in lookahead]
    _require_entries(len(prompts), splits=splits, request_ids=request_ids)
    if not prompts or any(not prompt for prompt in prompts):
        raise FinemoeError("record needs at least one prompt, and none of them empty")
    if batch_size > 1 and (tokenizer.padding_side != "left" or tokenizer.pad_token_id is None):
        raise FinemoeError("batches need a tokenizer with a pad token and padding_side='left'; set them, or use batch_size=1")
    pieces: list[list[dict[str, np.ndarray]]] = []
    for begin in _batches(len(prompts), batch_size, progress):
        batch = list(prompts[begin : begin + batch_size])
        pieces.append(_record_batch(model, layers, batch, tokenizer, max_new_tokens, min_new_tokens, lookahead))
    requests = [request for piece in pieces for request in piece]
    details = {"model": identity_of(model, layers), "splits": tuple(splits), "request_ids": tuple(request_ids)}
    return _assemble(requests, layers[0].num_experts, lookahead_strides=tuple(lookahead), **details)


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


def _require_entries(num_prompts: int, **per_prompt: Sequence[str]) -> None:
    """What the trace would refuse, refused before hours of recording."""
    for name, entries in per_prompt.items():
        if len(entries) not in (0, num_prompts):
            raise FinemoeError(f"{name} has {len(entries)} entries for {num_prompts} prompts")


def _experts_hook(tape: _Tape, layer: MoELayer) -> Any:
    def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        tape.on_experts(layer, args[1], args[2])

    return hook


def _batches(num_prompts: int, batch_size: int, progress: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(range(0, num_prompts, batch_size), desc="recording", unit="batch", disable=not progress)


def _record_batch(
    model: nn.Module,
    layers: list[MoELayer],
    prompts: list[str],
    tokenizer: Any,
    max_new_tokens: int,
    min_new_tokens: int | None,
    strides: Sequence[int],
) -> list[dict[str, np.ndarray]]:
    inputs = tokenizer(prompts, return_tensors="pt", padding=len(prompts) > 1).to(next(model.parameters()).device)
    tape = _Tape()
    ahead = _ahead(model, layers, strides, tape) if strides else None
    observer = Observer(model, layers, tape)
    handles = [layer.experts.register_forward_pre_hook(_experts_hook(tape, layer)) for layer in layers]
    try:
        with torch.inference_mode():
            tokens = model.generate(  # type: ignore[operator]
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                do_sample=False,
                max_new_tokens=max_new_tokens,
                min_new_tokens=min_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )
    finally:
        observer.detach()
        if ahead is not None:
            ahead.detach()
        for handle in handles:
            handle.remove()
    if any(len(step.gates) != len(layers) or len({gate.shape for gate in step.gates}) > 1 for step in tape.steps):
        raise FinemoeError("this model's MoE layers do not all run on text, or differ in width; record supports neither yet")
    eos: Any = model.generation_config.eos_token_id  # type: ignore[union-attr]
    mask = inputs["attention_mask"].cpu().numpy().astype(bool)
    ends = _ends(tokens[:, mask.shape[1] :].cpu().numpy(), eos)
    return [_rows_of(tape.steps, tokens.cpu().numpy(), mask, row, ends[row]) for row in range(len(prompts))]


def _ahead(model: nn.Module, layers: list[MoELayer], strides: Sequence[int], tape: _Tape) -> RoutersAhead:
    def on_residual(layer: int, residual: torch.Tensor) -> None:
        tape.on_ahead(ahead.choices(layer, residual), ahead.targets(layer), layers[0].num_experts)

    ahead = RoutersAhead(model, layers, strides, on_residual)
    return ahead


def _ends(generated: np.ndarray, eos: int | list[int] | None) -> list[int]:
    """How many generated tokens each request has, its end-of-sequence token included; generated [B, m]."""
    stops = np.isin(generated, [] if eos is None else eos)
    return [int(row.argmax()) + 1 if row.any() else len(row) for row in stops]


def _rows_of(steps: list[_Step], tokens: np.ndarray, mask: np.ndarray, row: int, num_generated: int) -> dict[str, np.ndarray]:
    _batch, width = mask.shape
    prompt_rows = row * width + np.flatnonzero(mask[row])
    picks = [prompt_rows] + [np.array([row])] * (num_generated - 1)
    used = list(zip(steps[: len(picks)], picks, strict=True))
    found = {
        "probs": _stacked([(step.gates, pick) for step, pick in used]).astype(np.float16),
        "selected": _stacked([(step.selected, pick) for step, pick in used]),
        "embeddings": np.concatenate([step.embeddings[pick] for step, pick in used]),
        "tokens": np.concatenate([tokens[row, :width][mask[row]], tokens[row, width : width + num_generated - 1]]),
        "step": np.concatenate([np.full(len(pick), index) for index, pick in enumerate(picks)]),
    }
    if steps[0].ahead_ids:
        found["ahead_ids"] = _stacked([(step.ahead_ids, pick) for step, pick in used])
        found["ahead_probs"] = _stacked([(step.ahead_probs, pick) for step, pick in used])
    return found


def _stacked(parts: list[tuple[list[np.ndarray], np.ndarray]]) -> np.ndarray:
    """The picked rows of every step's per-layer arrays, [rows, L, ...]."""
    return np.concatenate([np.stack([array[pick] for array in layers], axis=1) for layers, pick in parts])


def _assemble(requests: list[dict[str, np.ndarray]], num_experts: int, **details: Any) -> RoutingTrace:
    rows = {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}
    of_selected = np.take_along_axis(rows["probs"], rows["selected"], axis=-1)
    order = np.argsort(-of_selected, axis=-1, kind="stable")
    table, index = np.unique(rows["embeddings"].astype(np.float16), axis=0, return_inverse=True)
    if "ahead_ids" in rows:  # [T, L, S, M] here, [T, S, L, M] in a trace
        details |= {f"lookahead_{name}": rows[f"ahead_{name}"].swapaxes(1, 2) for name in ("ids", "probs")}
    return RoutingTrace(
        expert_ids=_as_ids(np.take_along_axis(rows["selected"], order, axis=-1), num_experts),
        expert_probs=np.take_along_axis(of_selected, order, axis=-1),
        offsets=np.cumsum([0, *(len(request["tokens"]) for request in requests)]).astype(np.int64),
        num_experts=num_experts,
        step=rows["step"].astype(np.int32),
        phase=np.where(rows["step"] == 0, PREFILL, DECODE).astype(np.uint8),
        probs=rows["probs"],
        tokens=rows["tokens"].astype(np.int32),
        embedding_table=table,
        embedding_index=index.reshape(-1).astype(np.int32),
        **details,
    )


def _as_ids(ids: np.ndarray, num_experts: int) -> np.ndarray:
    return ids.astype(np.uint8 if num_experts <= 256 else np.uint16)
