"""A lean form of the eager experts loop, for classes whose eager forward equals the common one statement by statement.

The common loop determines each expert's tokens on the device with a one-hot mask and a search per expert, some ten small
operations per layer. An engine has already read the selected experts to the host, so only the arithmetic remains here: the same
operations on the same operands in the same order, hence the same bits. Whether a class qualifies is decided from its source.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.functional import linear

# Shared by most families: `lean_forward` computes exactly this.
_COMMON_FORWARD = """
def forward(self, hidden_states, top_k_index, top_k_weights):
    final_hidden_states = torch.zeros_like(hidden_states)
    with torch.no_grad():
        expert_mask = torch.nn.functional.one_hot(top_k_index, num_classes=self.num_experts + 1)
        expert_mask = expert_mask.permute(2, 1, 0)
        expert_hit = torch.greater(expert_mask.sum(dim=(-1, -2)), 0).nonzero()
    for expert_idx in expert_hit:
        expert_idx = expert_idx[0]
        if expert_idx == self.num_experts:
            continue
        top_k_pos, token_idx = torch.where(expert_mask[expert_idx])
        current_state = hidden_states[token_idx]
        gate, up = nn.functional.linear(current_state, self.gate_up_proj[expert_idx]).chunk(2, dim=-1)
        current_hidden_states = self.act_fn(gate) * up
        current_hidden_states = nn.functional.linear(current_hidden_states, self.down_proj[expert_idx])
        current_hidden_states = current_hidden_states * top_k_weights[token_idx, top_k_pos, None]
        final_hidden_states.index_add_(0, token_idx, current_hidden_states.to(final_hidden_states.dtype))
    return final_hidden_states
"""


@cache
def is_common(experts_class: type) -> bool:
    """Whether the class's eager forward is the common loop, ignoring comments, annotations and one-hot's class count."""
    try:
        source = textwrap.dedent(inspect.getsource(experts_class.forward.__wrapped__))  # type: ignore[attr-defined]
    except (OSError, TypeError):
        return False
    return _normal_form(source) == _normal_form(_COMMON_FORWARD)


def _normal_form(source: str) -> str:
    function = next(node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    for argument in function.args.args:
        argument.annotation = None
    function.returns, function.decorator_list = None, []
    if isinstance(function.body[0], ast.Expr) and isinstance(function.body[0].value, ast.Constant):
        function.body = function.body[1:]
    text = ast.unparse(function).replace("torch.nn.functional.", "nn.functional.").replace("F.linear", "nn.functional.linear")
    return text.replace("self.num_experts + 1", "self.num_experts")  # Transformers 5.18 added a class for foreign experts


class Source(Protocol):
    """Provides a layer's weights."""

    def weights(self, expert: int) -> dict[str, torch.Tensor]:
        """One expert's weights by parameter name, completely loaded and safe to read."""

    def as_they_come(self, experts: Sequence[int]) -> Iterable[int]:
        """Ascending ids, in the best order to request them."""


def lean_forward(
    module: nn.Module,
    source: Source,
    hidden_states: torch.Tensor,
    selected: np.ndarray,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """The common loop, with the selected experts known to the host.

    Args:
        module: an experts module with the common forward.
        source: provides the experts' weights.
        hidden_states: [T, H].
        selected: [T, K] expert ids on the host.
        top_k_index, top_k_weights: [T, K] on the device.
    Returns:
        [T, H], bit-equal to the eager forward.
    """
    if len(selected) == 1:
        places = {expert: place for place, expert in enumerate(selected[0].tolist()) if expert != module.num_experts}
        if len(places) == np.count_nonzero(selected != module.num_experts):  # no expert occurs twice
            return _one_token(module, source, hidden_states, places, top_k_weights)
    return _many_tokens(module, source, hidden_states, selected, top_k_index, top_k_weights)


def _one_token(
    module: nn.Module, source: Source, hidden_states: torch.Tensor, places: dict[int, int], top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Compute experts as they arrive and add them in ascending order with one rounding each, as eager does."""
    output = torch.zeros_like(hidden_states)
    order, results, num_added, act_fn = sorted(places), {}, 0, module.act_fn
    for expert in source.as_they_come(order):
        weight, place = source.weights(expert), places[expert]
        gate, up = linear(hidden_states, weight["gate_up_proj"]).chunk(2, -1)
        result = linear(act_fn(gate) * up, weight["down_proj"])  # type: ignore[operator]
        results[expert] = result * top_k_weights[:, place : place + 1]
        while num_added < len(order) and order[num_added] in results:
            output += results.pop(order[num_added]).to(output.dtype)
            num_added += 1
    return output


def _many_tokens(
    module: nn.Module,
    source: Source,
    hidden_states: torch.Tensor,
    selected: np.ndarray,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    output = torch.zeros_like(hidden_states)
    # Position-major, the order in which the common loop's `where` finds an expert's tokens. Sorted on the device, since a copy
    # from the host would wait for all work issued before.
    places = top_k_index.t().reshape(-1).argsort(stable=True)
    tokens = places % len(selected)
    counts = np.bincount(selected.reshape(-1), minlength=1)
    experts = counts.nonzero()[0]
    sizes = counts[experts].tolist()
    factors = top_k_weights.t().reshape(-1).index_select(0, places).unsqueeze(1)
    parts = zip(experts.tolist(), tokens.split(sizes), factors.split(sizes), strict=True)
    for expert, mine, factor in parts:
        if expert == module.num_experts:
            continue
        weight = source.weights(expert)
        gate, up = linear(hidden_states.index_select(0, mine), weight["gate_up_proj"]).chunk(2, -1)
        result = linear(module.act_fn(gate) * up, weight["down_proj"])  # type: ignore[operator]
        output.index_add_(0, mine, (result * factor).to(output.dtype))
    return output
