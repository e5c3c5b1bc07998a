"""Which quantised checkpoints finemoe can load, and why it cannot load the others."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from finemoe.errors import FinemoeError
from finemoe.packing.compressed import names_experts
from finemoe.packing.methods import method_of

KNOWN = ("fp8", "mxfp4", "compressed-tensors")
_APART = "a checkpoint packs each expert separately, and Transformers' fused experts cannot hold its tensors"
_LAYERS = "it packs only linear layers and leaves fused experts in bf16"
OTHERS = {
    "aqlm": _LAYERS,
    "auto-round": _APART,
    "awq": _APART,
    "bitnet": _LAYERS,
    "bitsandbytes": f"{_LAYERS}; Transformers builds no model from experts packed one by one",
    "eetq": _LAYERS,
    "fbgemm_fp8": "it needs a GPU, and Transformers cannot unpack it while loading",
    "gptq": _APART,
    "higgs": _LAYERS,
    "hqq": _LAYERS,
    "metal": "it needs kernels of Apple GPUs",
    "modelopt": "Transformers does not know it, and would load packed bytes as weights",
    "quanto": _LAYERS,
    "quark": "only its own package unpacks it",
    "spqr": _LAYERS,
    "torchao": "Transformers cannot unpack it while loading, and leaves fused experts in bf16, or unusable by their layer",
    "vptq": _LAYERS,
}
_INSTEAD = "use a checkpoint in bf16, FP8, MXFP4, compressed-tensors or GGUF"


def require_known(told: Mapping[str, Any], source: str) -> None:
    """Refuse a quantisation that cannot be unpacked exactly as Transformers does it.

    Raises:
        FinemoeError: the method is not supported; the message names it and the reason.
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
            f"{source}: FP8 with {told['activation_scheme']} activation scales, which quantise activations too and are lost "
            f"when weights are unpacked; {_INSTEAD}"
        )


def _require_package(module: str, source: str) -> None:
    if find_spec(module) is None:
        raise FinemoeError(f"{source}: unpacking needs {module}, which is not installed; run `pip install 'finemoe[quantised]'`")


def _require_unpackable_groups(told: Mapping[str, Any], source: str) -> None:
    """Refuse those compressed-tensors checkpoints that Transformers (5.23) cannot unpack, or unpacks to other weights."""
    groups = list((told.get("config_groups") or {}).values())
    for group in groups:
        form = group.get("format") or told.get("format")
        if form == "nvfp4-pack-quantized":
            raise FinemoeError(
                f"{source}: its format is NVFP4, whose global scales Transformers loses when it unpacks experts; {_INSTEAD}"
            )
        if form == "int-quantized":
            raise FinemoeError(f"{source}: its experts are integers of one byte, which Transformers does not unpack; {_INSTEAD}")
        if (group.get("weights") or {}).get("symmetric") is False:
            raise FinemoeError(
                f"{source}: its integers are asymmetric, which Transformers cannot unpack in fused experts; {_INSTEAD}"
            )
    for of_experts in (True, False):
        weights = [group.get("weights") for group in groups if names_experts(group) is of_experts]
        if any(one != weights[0] for one in weights):
            raise FinemoeError(
                f"{source}: its groups of weights are quantised in different ways, but Transformers unpacks all of them like the "
                f"first; {_INSTEAD}"
            )
