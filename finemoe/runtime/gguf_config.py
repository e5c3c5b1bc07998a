"""The configuration of the model in a GGUF file: Transformers' own; and a Mixtral's, which it takes for a Llama."""

from importlib import import_module
from typing import Any

from transformers import AutoConfig, MixtralConfig

from finemoe.runtime.gguf_file import GgufFile

_MIXTRAL = "llama"  # what llama.cpp calls it, as it does every Llama
_WIDTHS = {  # that Transformers leaves at one model's, although the file says them
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
}


def config_of_gguf(file: GgufFile) -> Any:
    """A configuration of what is in the file.

    Raises:
        Exception: Transformers does not know the architecture, or the file lacks what it asks for.
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
    """Transformers' reading of a Llama, and the experts, which it leaves out."""
    if (scaling := file.text("rope.scaling.type") or "none") != "none":
        raise ValueError(f"positions scaled by {scaling!r}, which finemoe does not read from such a file")
    legacy = import_module("transformers.modeling_gguf_pytorch_utils")
    told = legacy.load_gguf_checkpoint(str(file.path), return_tensors=False)["config"]
    named = {name: value for name, value in told.items() if name != "model_type"}
    experts = {"num_local_experts": file.number("expert_count"), "num_experts_per_tok": file.number("expert_used_count")}
    return MixtralConfig(**(named | experts))
