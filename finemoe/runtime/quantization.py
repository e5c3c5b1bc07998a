"""Which quantised checkpoints can be loaded, and why the others cannot."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from finemoe.errors import FinemoeError
from finemoe.packing.compressed import names_experts
from finemoe.packing.methods import method_of

KNOWN = ("fp8", "mxfp4", "compressed-tensors")
_APART = "a checkpoint packs each expert apart, and Transformers has no place for its tensors in fused experts"
_LAYERS = "it packs layers only and leaves fused experts in bf16"
OTHERS = {
    "aqlm": _LAYERS,
    "auto-round": _APART,
    "awq": _APART,
    "bitnet": _LAYERS,
    "bitsandbytes": f"{_LAYERS}; of experts that are packed one by one Transformers makes no model",
    "eetq": _LAYERS,
    "fbgemm_fp8": "it needs a GPU, and Transformers unpacks nothing of it while loading",
    "gptq": _APART,
    "higgs": _LAYERS,
    "hqq": _LAYERS,
    "metal": "it is made for kernels of Apple's GPUs",
    "modelopt": "Transformers does not know it, and would take packed bytes for weights",
    "quanto": _LAYERS,
    "quark": "only its own package unpacks it",
    "spqr": _LAYERS,
    "torchao": "Transformers cannot unpack it while loading, and leaves fused experts in bf16, or useless to their layer",
    "vptq": _LAYERS,
}
_INSTEAD = "use a checkpoint in bf16, FP8, MXFP4, compressed-tensors or GGUF"


def require_known(told: Mapping[str, Any], source: str) -> None:
    """Refuse a quantisation that cannot be unpacked as Transformers does it.

    Raises:
        FinemoeError: by name, with the reason.
    """
    method = method_of(told)
    if method not in KNOWN:
        reason = OTHERS.get(method, "a method that Transformers does not unpack")
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
        form = group.get("format") or told.get("format")
        if form == "nvfp4-pack-quantized":
            raise FinemoeError(f"{source}: NVFP4, whose global scales Transformers loses where it unpacks experts; {_INSTEAD}")
        if form == "int-quantized":
            raise FinemoeError(f"{source}: integers a byte each, which Transformers does not unpack in experts; {_INSTEAD}")
        if (group.get("weights") or {}).get("symmetric") is False:
            raise FinemoeError(
                f"{source}: asymmetric integers, which Transformers cannot unpack where experts are fused; {_INSTEAD}"
            )
    for of_experts in (True, False):
        weights = [group.get("weights") for group in groups if names_experts(group) is of_experts]
        if any(one != weights[0] for one in weights):
            raise FinemoeError(
                f"{source}: groups of weights that are quantised in different ways, all of which Transformers unpacks by the "
                f"first; {_INSTEAD}"
            )
