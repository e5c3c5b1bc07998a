"""What an offloaded model cannot do, refused with the reason and the remedy instead of going wrong later (DESIGN 5, "Traps")."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from finemoe.errors import FinemoeError
from finemoe.runtime import seam
from finemoe.runtime.layers import MoELayer

_CLOSE_FIRST = "call engine.close() first"


def require_offloadable(model: nn.Module) -> None:
    """Refuse models that another library has taken apart already.

    Raises:
        FinemoeError: compiled, PEFT-wrapped, quantised, dispatched by Accelerate, or without weights.
    """
    if hasattr(model, "_orig_mod"):
        raise FinemoeError("this model is wrapped by torch.compile; offload the model inside it (model._orig_mod)")
    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        raise FinemoeError(
            "this model carries PEFT adapters, whose weights finemoe does not see; merge them (merge_and_unload) first"
        )
    config = getattr(model, "config", None)
    if getattr(model, "hf_quantizer", None) is not None or getattr(config, "quantization_config", None) is not None:
        raise FinemoeError(
            "this model's weights are quantised, which finemoe does not support yet; load it in bf16, fp16 or fp32"
        )
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        raise FinemoeError(
            "Accelerate has dispatched this model over devices (device_map); load it without device_map, or with finemoe.load"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise FinemoeError("this model has weights on the meta device; load them, or use finemoe.load with the checkpoint's path")


def require_free(layers: Sequence[MoELayer]) -> None:
    """Refuse a model that an engine holds already."""
    if any(seam.is_connected(layer.experts) for layer in layers):
        raise FinemoeError("this model is already offloaded; close its engine first")


class Guards:
    """Refusals that stand while an engine is attached; `lift` takes them away again.

    They stand at the experts and at everything that contains them, so that a conversion is refused before its first step.
    """

    def __init__(self, model: nn.Module, layers: Sequence[MoELayer]) -> None:
        modules = dict(model.named_modules())
        names = {name for layer in layers for name in _path_to(layer.name)}
        self._guarded = [modules[name] for name in sorted(names)]
        for module in self._guarded:
            module.__dict__.update(_REFUSALS)
            module.__dict__["_apply"] = _refuse_conversion(module)
        self._handles = [layer.experts.register_state_dict_pre_hook(_refuse_saving) for layer in layers]
        self._handles += [layer.experts.register_load_state_dict_pre_hook(_refuse_loading) for layer in layers]

    def lift(self) -> None:
        """Allow everything again."""
        for handle in self._handles:
            handle.remove()
        for module in self._guarded:
            for name in [*_REFUSALS, "_apply"]:
                del module.__dict__[name]


def _path_to(name: str) -> list[str]:
    """Names of a module and of all that contain it, the model itself ("") included: "a.b" -> "", "a", "a.b"."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts) + 1)]


def _refuse_saving(*_: Any, **__: Any) -> None:
    raise FinemoeError(f"an offloaded model's experts are not in it, so it cannot be saved; {_CLOSE_FIRST}")


def _refuse_loading(*_: Any, **__: Any) -> None:
    raise FinemoeError(f"an offloaded model's experts are not in it, so weights cannot be loaded into it; {_CLOSE_FIRST}")


def _refuse_copying(*_: Any, **__: Any) -> None:
    raise FinemoeError(f"an offloaded model's experts are not in it, so it cannot be copied or pickled; {_CLOSE_FIRST}")


_REFUSALS: dict[str, Callable[..., Any]] = {"__deepcopy__": _refuse_copying, "__reduce_ex__": _refuse_copying}


def _refuse_conversion(module: nn.Module) -> Callable[..., nn.Module]:
    """`half()`, `to(...)` and their like end here; those that would change nothing pass."""

    def apply(function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        kinds = {(tensor.dtype, tensor.device) for tensor in (*module.parameters(), *module.buffers())}
        for dtype, device in kinds:
            result = function(torch.empty((1, 1), dtype=dtype, device=device))
            if (result.dtype, result.device) != (dtype, device):
                raise FinemoeError(
                    f"an offloaded model's type and device are fixed; {_CLOSE_FIRST}, convert it, and offload it again"
                )
        return module

    return apply
