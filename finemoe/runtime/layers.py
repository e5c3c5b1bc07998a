"""The MoE layers of a Transformers model, found through the experts seam and without any per-family code.

Transformers marks every experts class that dispatches through its registry (attributes set by `use_experts_implementation`); the
router is the experts' sibling whose weight has one row per expert.
"""

from dataclasses import dataclass

import torch
from torch import nn

from finemoe.errors import FinemoeError


@dataclass(frozen=True)
class MoELayer:
    """One MoE layer: its index among MoE layers, its module path, the experts and the router module."""

    index: int
    name: str
    experts: nn.Module
    router: nn.Module
    num_experts: int

    def expert_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters indexed by expert along their first axis."""
        return {
            name: parameter
            for name, parameter in self.experts.named_parameters()
            if parameter.ndim >= 1 and parameter.shape[0] == self.num_experts
        }


def find_moe_layers(model: nn.Module) -> list[MoELayer]:
    """All MoE layers of the model in the order of its modules.

    Raises:
        FinemoeError: the model has none, or one of them has no recognisable router.
    """
    modules = dict(model.named_modules())
    found = [(name, module) for name, module in modules.items() if _is_experts(module)]
    if not found:
        raise FinemoeError(
            f"{type(model).__name__} has no experts that dispatch through Transformers' experts interface; "
            "finemoe offloads Mixture-of-Experts models of transformers >= 5.17"
        )
    layers = []
    for index, (name, experts) in enumerate(found):
        parent = modules[name.rpartition(".")[0]]
        num_experts = int(next(p.shape[0] for p in experts.parameters() if p.ndim == 3))
        layers.append(MoELayer(index, name, experts, _router_of(parent, experts, num_experts, name), num_experts))
    return layers


def _is_experts(module: nn.Module) -> bool:
    return hasattr(module, "_is_expert_parallel") and hasattr(type(module).forward, "__wrapped__")


def _router_of(parent: nn.Module, experts: nn.Module, num_experts: int, name: str) -> nn.Module:
    for child in parent.children():
        weight = getattr(child, "weight", None)
        if child is not experts and isinstance(weight, torch.Tensor) and weight.ndim == 2 and weight.shape[0] == num_experts:
            return child
    raise FinemoeError(f"no router with {num_experts} outputs beside {name}; this model's MoE block is not supported yet")


def activated_per_token(model: nn.Module) -> int:
    """K, from the model's configuration.

    Raises:
        FinemoeError: the configuration does not say.
    """
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    for key in ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts"):
        if isinstance(getattr(config, key, None), int):
            return int(getattr(config, key))
    raise FinemoeError(f"{type(config).__name__} does not say how many experts a token activates")
