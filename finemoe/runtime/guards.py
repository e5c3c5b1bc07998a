"""Refusals of what an offloaded model cannot do, each with reason and remedy, before anything goes wrong (DESIGN 5, "Traps")."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from finemoe.errors import FinemoeError
from finemoe.models.layers import MoELayer, names_above
from finemoe.runtime import seam

_CLOSE_FIRST = "call engine.close() first"
_NEVER_HELD = "finemoe.load does not put them there: copy the checkpoint's folder, or load the model with from_pretrained"


def require_offloadable(model: nn.Module) -> None:
    """Refuse models that another library has already modified.

    Raises:
        FinemoeError: the model is compiled, wrapped by PEFT, quantised, dispatched by Accelerate or without weights, or it is not
            a model.
    """
    if not isinstance(model, nn.Module):
        raise FinemoeError(
            f"offload takes a Transformers model, not {type(model).__name__}; finemoe.load takes a name or a folder"
        )
    if hasattr(model, "_orig_mod"):
        raise FinemoeError("this model is wrapped by torch.compile; offload the model inside it (model._orig_mod)")
    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        raise FinemoeError(
            "this model has PEFT adapters, whose weights finemoe does not see; merge them (merge_and_unload) first"
        )
    config = getattr(model, "config", None)
    if getattr(model, "hf_quantizer", None) is not None or getattr(config, "quantization_config", None) is not None:
        raise FinemoeError(
            "this model's weights are quantised in memory, where kernels need them whole; pass its checkpoint to finemoe.load, "
            "which keeps the experts packed, or load it in bf16, fp16 or fp32"
        )
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        raise FinemoeError(
            "Accelerate has dispatched this model over devices (device_map); load it without device_map, or with finemoe.load"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise FinemoeError(
            "this model has weights on the meta device; load them, or use finemoe.load with the checkpoint's folder"
        )


def require_contiguous(layers: Sequence[MoELayer]) -> None:
    """Refuse experts whose memory order differs from their shape: products of such weights round differently."""
    for layer in layers:
        for name, parameter in layer.expert_parameters().items():
            if not parameter.is_contiguous():
                raise FinemoeError(
                    f"{layer.name}.{name} is not contiguous in memory, which a record cannot keep; make it contiguous first: "
                    "parameter.data = parameter.data.contiguous()"
                )


def require_free(layers: Sequence[MoELayer]) -> None:
    """Refuse a model that an engine already holds, or whose experts were lost with its engine."""
    if any(seam.is_without_weights(layer.experts) for layer in layers):
        raise FinemoeError("this model's experts were freed with the engine that held them; load it again with finemoe.load")
    if any(seam.is_connected(layer.experts) for layer in layers):
        raise FinemoeError("this model is already offloaded; close its engine first")


class Guards:
    """Refusals in force while an engine is attached; `lift` removes them.

    They are placed on the experts and on every module that contains them, so that a conversion is refused before its first step.

    Args:
        model: the offloaded model.
        layers: its MoE layers.
        holds_weights: whether closing the engine puts the experts back into the model.
    """

    def __init__(self, model: nn.Module, layers: Sequence[MoELayer], holds_weights: bool = True) -> None:
        remedy = _CLOSE_FIRST if holds_weights else _NEVER_HELD
        refusals = {name: _refuse(f"so it cannot be copied or pickled; {remedy}") for name in _COPYING}
        modules = dict(model.named_modules())
        names = {name for layer in layers for name in (*names_above(layer.name), layer.name)}
        self._guarded = [modules[name] for name in sorted(names)]
        for module in self._guarded:
            module.__dict__.update(refusals)
            module.__dict__["_apply"] = _refuse_conversion(module, holds_weights)
        saving, loading = _refuse(f"so it cannot be saved; {remedy}"), _refuse(f"so weights cannot be loaded into it; {remedy}")
        self._handles = [module.register_state_dict_pre_hook(saving) for module in self._guarded]
        self._handles += [module.register_load_state_dict_pre_hook(loading) for module in self._guarded]

    def lift(self) -> None:
        """Allow everything again; lifting twice is harmless."""
        for handle in self._handles:
            handle.remove()
        for module in self._guarded:
            for name in (*_COPYING, "_apply"):
                module.__dict__.pop(name, None)


_COPYING = ("__deepcopy__", "__reduce_ex__")


def _refuse(consequence: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> None:
        raise FinemoeError(f"an offloaded model's experts are not in it, {consequence}")

    return refuse


def _refuse_conversion(module: nn.Module, holds_weights: bool) -> Callable[..., nn.Module]:
    """Refuse `half()`, `to(...)` and the like; calls that would change nothing pass."""
    remedy = f"{_CLOSE_FIRST}, convert it, and offload it again" if holds_weights else "load it again in the type you need"

    def apply(function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        kinds = {(tensor.dtype, tensor.device) for tensor in (*module.parameters(), *module.buffers())}
        for dtype, device in kinds:
            result = function(torch.empty((1, 1), dtype=dtype, device=device))
            if (result.dtype, result.device) != (dtype, device):
                raise FinemoeError(f"an offloaded model's type and device are fixed; {remedy}")
        return module

    return apply
