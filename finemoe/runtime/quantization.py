"""Which quantised checkpoints can be loaded, and why the others cannot."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from finemoe.errors import FinemoeError
from finemoe.packing.compressed import names_experts
from finemoe.packing.methods import method_of

KNOWN = ("fp8", "mxfp4", "compressed-tensors")
_OTHERS = {
    "bitsandbytes": "its 4-bit and 8-bit kernels compute with weights that Transformers never unpacks",
}
_INSTEAD = "use a checkpoint in bf16, FP8, MXFP4, compressed-tensors or GGUF"


def require_known(told: Mapping[str, Any], source: str) -> None:
    """Refuse a quantisation that cannot be unpacked as Transformers does it.

    Raises:
        FinemoeError: by name, with the reason.
    """
    method = method_of(told)
    if method not in KNOWN:
        reason = _OTHERS.get(method, "a method that finemoe cannot unpack")
        raise FinemoeError(f"{source}: its weights are quantised by {method}: {reason}; {_INSTEAD}")
    if method == "compressed-tensors":
        _require_package("compressed_tensors", source)
        _require_unpackable_groups(told, source)
    if method == "fp8" and told.get("activation_scheme", "dynamic") != "dynamic":
        raise FinemoeError(
            f"{source}: FP8 with {told['activation_scheme']} activation scales, by which activations are quantised, too, and "
            f"which are lost where weights are unpacked; {_INSTEAD}"
        )


def _require_package(module: str, source: str) -> None:
    if find_spec(module) is None:
        raise FinemoeError(
            f"{source}: unpacking takes {module}, which is not installed; `pip install 'finemoe[quantised]'` brings it"
        )


def _require_unpackable_groups(told: Mapping[str, Any], source: str) -> None:
    """Of compressed-tensors' checkpoints, refuse those that Transformers (5.23) unpacks to other weights, or not at all."""
    groups = list((told.get("config_groups") or {}).values())
    for group in groups:
        if (group.get("format") or told.get("format")) == "nvfp4-pack-quantized":
            raise FinemoeError(f"{source}: NVFP4, whose global scales Transformers loses where it unpacks experts; {_INSTEAD}")
        if (group.get("weights") or {}).get("symmetric") is False:
            raise FinemoeError(
                f"{source}: asymmetric integers, which Transformers cannot unpack where experts are fused; {_INSTEAD}"
            )
    for of_experts in (True, False):
        weights = [group.get("weights") for group in groups if names_experts(group) is of_experts]
        if any(one != weights[0] for one in weights):
            raise FinemoeError(
                f"{source}: groups of weights that are quantised in different ways, of which Transformers unpacks all by the first; "
                f"{_INSTEAD}"
            )
