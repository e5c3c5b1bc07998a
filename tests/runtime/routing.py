"""What maps say of what routers do, family by family: `python -m tests.runtime.routing`.

For every family of the support matrix, three shares, each 1 where maps rank as routers select:
- live: of the experts selected in a layer, those among as many greatest entries of the map that the policy was given;
- recorded: the same for a recorded trace; the selected experts are taken by hooks from a generation that is not recorded;
- ahead: of the experts selected, those that the router applied ahead selects, on an exact residual stream: attention and experts
  give zeros here, so that a router ahead reads what the layer's own router will read.

`--recall FAMILY ...` replays FineMoE on these families' requests twice: with the softmax of the logits as maps, and with the maps
that `record` writes.
"""

import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import BatchEncoding, PreTrainedModel

import finemoe
from finemoe.errors import FinemoeError
from finemoe.models.layers import find_moe_layers
from tests.runtime import families

PROMPT = (41, 57, 43, 66, 71, 48, 90, 52)
NEW_TOKENS = 4
STRIDES = (1, 2)


@dataclass
class Share:
    """Counts of experts; `reason` instead of them where finemoe refuses."""

    found: int = 0
    wanted: int = 0
    reason: str = ""

    def add(self, selected: set[int], values: np.ndarray) -> None:
        """Experts selected, and the values of all [J]; one counts as found if fewer values exceed its own than were selected."""
        self.found += sum(int((values > values[expert]).sum()) < len(selected) for expert in selected)
        self.wanted += len(selected)

    @property
    def is_right(self) -> bool:
        return bool(self.reason) or (self.wanted > 0 and self.found == self.wanted)

    def __str__(self) -> str:
        return f"refused: {self.reason}" if self.reason else f"{self.found / self.wanted:.4f} of {self.wanted}"


class Tokens:
    """A tokenizer that always gives the same tokens."""

    padding_side, pad_token_id = "left", 0

    def __call__(self, prompts: list[str], **_: Any) -> BatchEncoding:
        ids = torch.tensor([PROMPT] * len(prompts))
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def live(name: str) -> Share:
    """What the policy was shown of a padded batch, against what the experts were called with in it."""
    model, share = families.build(name), Share()
    try:
        engine = finemoe.offload(model, 0.5, "finemoe", asynchronous=False)
    except FinemoeError as error:
        return Share(reason=str(error))
    with engine:
        shown: list[tuple[int, np.ndarray, np.ndarray]] = []
        on_gate = engine.policy.on_gate

        def spy(layer: int, probs: np.ndarray, experts: np.ndarray, lookahead: Any = None) -> Any:
            shown.append((layer, probs.copy(), experts.copy()))
            return on_gate(layer, probs, experts, lookahead)

        engine.policy.on_gate = spy  # type: ignore[method-assign]
        engine.policy.gate_step = lambda num_rows: None  # type: ignore[method-assign] - what it is shown is the same
        families.logits_of(model, families.batch(model))
    assert [layer for layer, _, _ in shown] == sorted({layer for layer, _, _ in shown}), (
        f"{name}: layers out of the model's order"
    )
    for _, probs, experts in shown:
        for row, selected in enumerate(experts):
            share.add(set(selected.tolist()), probs[row])
    return share


def recorded(name: str) -> Share:
    """A recorded trace, against hooks on the same generation."""
    share = Share()
    try:
        trace = record(families.build(name))
    except FinemoeError as error:
        return Share(reason=str(error))
    truth = selected_by(families.build(name))
    for row in range(trace.num_rows):
        for layer in range(trace.num_layers):
            selected = set(truth[layer][row].tolist())
            assert selected == set(trace.expert_ids[row, layer].tolist()), f"{name}: other experts recorded than selected"
            share.add(selected, trace.probs[row, layer])
    return share


def ahead(name: str) -> Share:
    """Routers applied ahead on a residual stream that no layer changes."""
    model, share = families.build(name), Share()
    try:
        strides = STRIDES[: len(find_moe_layers(model)) - 1]
        record(model, strides)  # refused for what it is, before it is silenced
        _silence(model)
        trace = record(model, strides)
    except FinemoeError as error:
        return Share(reason=str(error))
    for stride in strides:
        said = trace.lookahead(slice(None), stride)
        for row in range(trace.num_rows):
            for layer in range(trace.num_layers - stride):
                share.add(set(trace.expert_ids[row, layer + stride].tolist()), said[row, layer])
    return share


def selected_by(model: PreTrainedModel) -> list[np.ndarray]:
    """What every MoE layer's experts are called with while the model generates, [rows, K] each."""
    layers = find_moe_layers(model)
    seen: list[list[np.ndarray]] = [[] for _ in layers]
    for layer, calls in zip(layers, seen, strict=True):
        layer.experts.register_forward_pre_hook(lambda module, args, calls=calls: calls.append(args[1].numpy().copy()))
    _set_tokens(model)
    ids = torch.tensor([PROMPT])
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False)
    return [np.concatenate(calls) for calls in seen]


def recalls(name: str) -> tuple[float, float]:
    """FineMoE's recall_at_k one layer ahead at half of the experts: maps as the softmax of logits, and as recorded."""
    model = families.build(name)
    logits: dict[int, list[np.ndarray]] = {layer.index: [] for layer in find_moe_layers(model)}
    for layer in find_moe_layers(model):
        layer.router.register_forward_hook(
            lambda module, args, output, at=layer.index: logits[at].append(output[0].numpy().copy())
        )
    _set_tokens(model)
    options = {"tokenizer": RandomTokens(), "max_new_tokens": 16, "min_new_tokens": 16}
    trace = finemoe.record(model, [str(number) for number in range(64)], **options)
    rows = np.stack([np.concatenate(calls) for calls in logits.values()], axis=1)
    softmax = torch.softmax(torch.from_numpy(rows), -1).numpy().astype(np.float16)
    assert softmax.shape == trace.probs.shape
    found = []
    for told in (replace(trace, probs=softmax), trace):
        history, served = told.select(range(32)), told.select(range(32, 64))
        found.append(finemoe.replay(served, "finemoe", 0.5, history=history, prefetch_distance=1).recall_at_k)
    return found[0], found[1]


class RandomTokens(Tokens):
    """A tokenizer that makes eight tokens of a number."""

    def __call__(self, prompts: list[str], **_: Any) -> BatchEncoding:
        drawn = [torch.randint(families.FIRST_ORDINARY_TOKEN, 88, (8,), generator=_seeded(int(prompt))) for prompt in prompts]
        ids = torch.stack(drawn)
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def record(model: PreTrainedModel, lookahead: tuple[int, ...] = ()) -> finemoe.RoutingTrace:
    """A recorded generation of four tokens, or the refusal."""
    if not model.can_generate():
        raise FinemoeError(f"{type(model).__name__} does not generate")
    _set_tokens(model)
    return finemoe.record(model, ["any"], tokenizer=Tokens(), max_new_tokens=NEW_TOKENS, lookahead=lookahead)


def _set_tokens(model: PreTrainedModel) -> None:
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0


@torch.no_grad()
def _silence(model: PreTrainedModel) -> None:
    """Let no decoder layer add anything to the residual stream; routers and norms stay as they were."""
    layers = find_moe_layers(model)
    kept = {id(parameter) for layer in layers if layer.router is not None for parameter in layer.router.parameters()}
    parts = layers[0].name.split(".")
    stack = model.get_submodule(".".join(parts[: next(i for i, part in enumerate(parts) if part.isdigit())]))
    for key, parameter in stack.named_parameters():
        is_a_norm = parameter.ndim == 1 and key.endswith("weight")
        if id(parameter) not in kept and not is_a_norm:
            parameter.zero_()


def main(names: list[str]) -> int:
    """Print the table; fail if a map of any family says something else than its router did."""
    if names[:1] == ["--recall"]:
        for name in names[1:]:
            before, after = recalls(name)
            print(f"{name:24s}recall_at_k of finemoe with the softmax of logits {before:.3f}, with the maps recorded {after:.3f}")
        return 0
    wrong = 0
    for name in names or families.family_names():
        shares = {"live": live(name), "recorded": recorded(name), "ahead": ahead(name)}
        wrong += not all(share.is_right for share in shares.values())
        print(f"{name:24s}" + " | ".join(f"{kind} {share}" for kind, share in shares.items()), flush=True)
    print(f"{wrong} families whose maps do not say what their routers do")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
