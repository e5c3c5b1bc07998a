"""Which quantised checkpoints can be loaded, and why the others cannot."""

from collections.abc import Mapping
from typing import Any

from finemoe.errors import FinemoeError
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
    for group in (told.get("config_groups") or {}).values():
        _require_symmetric_integers(group, str(group.get("format") or told.get("format")), source)
    if method == "fp8" and told.get("activation_scheme", "dynamic") != "dynamic":
        raise FinemoeError(
            f"{source}: FP8 with {told['activation_scheme']} activation scales, by which activations are quantised, too, and "
            f"which are lost where weights are unpacked; {_INSTEAD}"
        )


def _require_symmetric_integers(group: Mapping[str, Any], packing: str, source: str) -> None:
    """Of compressed-tensors' formats, refuse those that Transformers (5.23) unpacks to other weights, or not at all."""
    if packing == "nvfp4-pack-quantized":
        raise FinemoeError(f"{source}: NVFP4, whose global scales Transformers loses where it unpacks experts; {_INSTEAD}")
    if (group.get("weights") or {}).get("symmetric") is False:
        raise FinemoeError(f"{source}: asymmetric integers, which Transformers cannot unpack where experts are fused; {_INSTEAD}")
