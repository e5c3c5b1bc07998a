"""The MoE layers of a Transformers model, found through the experts interface and without per-family code.

Transformers marks every experts class that dispatches through its registry (attributes set by `use_experts_implementation`). The
router is the sibling module of the experts that Transformers calls `gate` or `router`, or otherwise one with a matrix that has a
row per expert. Whether it really is the router is checked in every run: it must return the very tensor of indices that the
experts receive.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from finemoe.errors import FinemoeError

_TOP_K_NAMES = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_top_k",
    "top_k_experts",
    "moe_k",
    "top_k",
    "topk",
)


@dataclass(frozen=True)
class MoELayer:
    """One MoE layer.

    Attributes:
        index: its place among the MoE layers, in the order of the model's modules; name: path of the experts module.
        experts: the experts module; num_experts: J.
        router: the module whose output contains the gate's logits or probabilities, or None if none is recognised.
    """

    index: int
    name: str
    experts: nn.Module
    router: nn.Module | None
    num_experts: int

    def expert_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters indexed by expert along their first axis."""
        return {
            name: parameter
            for name, parameter in self.experts.named_parameters(recurse=False)
            if parameter.ndim >= 2 and parameter.shape[0] == self.num_experts
        }


def find_moe_layers(model: nn.Module) -> list[MoELayer]:
    """All MoE layers of the model in the order of its modules.

    Raises:
        FinemoeError: the model has none, or some of them share their weights.
    """
    modules = dict(model.named_modules())
    found = [(name, module) for name, module in modules.items() if is_experts(module)]
    if not found:
        raise FinemoeError(
            f"{type(model).__name__} has no experts that dispatch through Transformers' experts interface; "
            "finemoe offloads Mixture-of-Experts models of transformers >= 5.17 (its README lists the families)"
        )
    layers = []
    for index, (name, experts) in enumerate(found):
        num_experts = int(next(p.shape[0] for p in experts.parameters(recurse=False) if p.ndim == 3))
        parent = modules[name.rpartition(".")[0]]
        layers.append(MoELayer(index, name, experts, _router_of(parent, experts, num_experts), num_experts))
    _require_own_weights(model, layers)
    return layers


def _require_own_weights(model: nn.Module, layers: list[MoELayer]) -> None:
    parameters = [id(parameter) for layer in layers for parameter in layer.expert_parameters().values()]
    if len(set(parameters)) < len(parameters):
        raise FinemoeError(f"{type(model).__name__} shares experts between its layers, which finemoe does not support yet")


def names_above(name: str) -> list[str]:
    """Names of all modules that contain a module, the model itself ("") first: "a.b.c" -> "", "a", "a.b"."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts))]


def is_experts(module: nn.Module) -> bool:
    """Whether a module's forward goes through Transformers' experts registry."""
    return hasattr(module, "has_gate") and hasattr(module, "is_transposed") and hasattr(type(module).forward, "__wrapped__")


def activated_per_token(model: nn.Module, layers: list[MoELayer]) -> int:
    """K, from the model's configuration or from its routers.

    Raises:
        FinemoeError: neither states it.
    """
    for holder in _holders(model, layers):
        for name in _TOP_K_NAMES:
            value = getattr(holder, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    raise FinemoeError(f"{type(model).__name__} does not state how many experts a token activates")


def _holders(model: nn.Module, layers: list[MoELayer]) -> Iterator[object]:
    yield layers[0].experts.config
    yield model.config.get_text_config()  # type: ignore[union-attr, operator]
    if layers[0].router is not None:
        yield layers[0].router


def _router_of(parent: nn.Module, experts: nn.Module, num_experts: int) -> nn.Module | None:
    for name in ("gate", "router"):
        child = getattr(parent, name, None)
        if isinstance(child, nn.Module):
            return child
    return next((child for child in parent.children() if child is not experts and _has_gate_matrix(child, num_experts)), None)


def _has_gate_matrix(module: nn.Module, num_experts: int) -> bool:
    return any(parameter.ndim == 2 and parameter.shape[0] == num_experts for parameter in module.parameters())
