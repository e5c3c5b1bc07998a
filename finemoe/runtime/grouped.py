"""Opt-in for long prompts: computes a layer's experts as two grouped matrix products directly over the slots.

Eager's loop issues a handful of small kernels per expert. Here tokens are sorted by the slot of their expert, and every slot
between the first and the last one used is a group (most may be empty), so no weight is gathered or moved. Products and sums are
ordered differently from eager's, so results differ by rounding; that is why this is opt-in. Results do not differ from run to
run: a token's results are summed over its K places, not added as they arrive.
"""

import numpy as np
import torch
from torch import nn
from torch.nn.functional import grouped_mm

_MOST_GROUPS = 1023  # limit of the CUDA kernel


def can_group(slots: np.ndarray) -> bool:
    """Whether these slots, [n], span few enough groups."""
    return len(slots) > 0 and int(slots.max() - slots.min()) < _MOST_GROUPS


def grouped_forward(
    module: nn.Module,
    stacked: dict[str, torch.Tensor],
    groups: np.ndarray,
    hidden_states: torch.Tensor,
    top_k_index: np.ndarray,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """What `lean_forward` computes, up to rounding.

    Args:
        module: an experts module with the common forward (see `lean`).
        stacked: weights by parameter name, [G, ...], one entry per group.
        groups: [J] group of every selected expert.
        hidden_states: [T, H].
        top_k_index: [T, K] on the host.
        top_k_weights: [T, K] on the device.
    Returns:
        [T, H].
    """
    device, top_k = hidden_states.device, top_k_index.shape[1]
    chosen = top_k_index.reshape(-1)
    places = np.flatnonzero(chosen < module.num_experts)  # expert parallelism marks foreign experts with J
    places = places[np.argsort(groups[chosen[places]], kind="stable")]
    counts = np.bincount(groups[chosen[places]], minlength=len(stacked["gate_up_proj"]))
    ends = torch.from_numpy(np.cumsum(counts).astype(np.int32)).to(device)
    order, tokens = torch.from_numpy(np.stack([places, places // top_k])).to(device)
    gate, up = grouped_mm(hidden_states[tokens], stacked["gate_up_proj"].mT, offs=ends).chunk(2, dim=-1)
    results = grouped_mm(module.act_fn(gate) * up, stacked["down_proj"].mT, offs=ends)  # type: ignore[operator]
    results = results * top_k_weights.reshape(-1)[order, None]
    placed = results.new_zeros(len(chosen), results.shape[1])  # foreign experts add nothing
    placed[order] = results
    return placed.view(-1, top_k, results.shape[1]).sum(1).to(hidden_states.dtype)
