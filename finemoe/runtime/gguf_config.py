"""The configuration of the model in a GGUF file: Transformers' own, except for Mixtral, which Transformers takes for a Llama."""

from importlib import import_module
from typing import Any

from transformers import AutoConfig, MixtralConfig

from finemoe.runtime.gguf_file import GgufFile

_MIXTRAL = "llama"  # llama.cpp's name for it, as for every Llama
_WIDTHS = {  # widths that Transformers sets to one model's, although the file contains them
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
}


def config_of_gguf(file: GgufFile) -> Any:
    """The configuration of the model in the file.

    Raises:
        Exception: Transformers does not know the architecture, or the file lacks metadata that it needs.
    """
    if file.architecture == _MIXTRAL and file.number("expert_count"):
        return _mixtral(file)
    config = AutoConfig.from_pretrained(file.path.parent, gguf_file=file.path.name, trust_remote_code=False)
    for name, key in _WIDTHS.items():
        value = file.number(key)
        if value is not None and hasattr(config, name):
            setattr(config, name, value)
    return config


def _mixtral(file: GgufFile) -> MixtralConfig:
    """Transformers' configuration of a Llama, plus the experts, which it leaves out."""
    if (scaling := file.text("rope.scaling.type") or "none") != "none":
        raise ValueError(f"its positions are scaled by {scaling!r}, which finemoe does not read from a GGUF file")
    legacy = import_module("transformers.modeling_gguf_pytorch_utils")
    told = legacy.load_gguf_checkpoint(str(file.path), return_tensors=False)["config"]
    named = {name: value for name, value in told.items() if name != "model_type"}
    experts = {"num_local_experts": file.number("expert_count"), "num_experts_per_tok": file.number("expert_used_count")}
    return MixtralConfig(**(named | experts))
