"""Loads a Transformers model by name, folder or hub id, whole or with its experts left outside the device."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemoe.errors import FinemoeError
from finemoe.miniatures.catalog import resolve

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from finemoe.runtime.engine import Engine

_RANDOM = "random:"  # before what configures a model with random weights


def load_model(name: str, dtype: str = "float32") -> tuple[Any, Any]:
    """The model (experts implementation "eager", evaluation mode, CPU) and its tokenizer (padding left).

    Args:
        name: a miniature's name, a folder, or a hub id; dtype: torch type name of the weights.
    Raises:
        FinemoeError: no such model, or its files are incomplete or damaged.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    source = resolve(name)
    tokenizer = load_tokenizer(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype), experts_implementation="eager")
    except (OSError, SafetensorError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FinemoeError(f"model {name!r} cannot be loaded from {source}: {reason}") from error
    return model.eval(), tokenizer


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model, padding on the left.

    Raises:
        FinemoeError: no such model, or its tokenizer is incomplete or damaged.
    """
    from transformers import AutoTokenizer

    source = resolve(name)
    try:
        return AutoTokenizer.from_pretrained(source, padding_side="left")
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FinemoeError(f"the tokenizer of {name!r} cannot be loaded from {source}: {reason}") from error


def load(
    source: str | Path,
    expert_memory: int | float | str,
    policy: str = "finemoe",
    *,
    dtype: "str | torch.dtype" = "auto",
    host_memory: int | str | None = None,
    disk_folder: str | Path | None = None,
    devices: Any = None,
    progress: bool = False,
    **options: Any,
) -> "tuple[PreTrainedModel, Engine]":
    """A model whose experts were never all in memory: read from its checkpoint straight to where they wait.

    Args:
        source: a miniature's name, a folder with a safetensors checkpoint (sharded or not, experts fused or apart), a hub id, or
            "random:CONFIG" (a config.json, a folder or a hub id) for a model of that size with random weights.
        dtype: of the weights; "auto" is the checkpoint's.
        progress: show a bar.
        expert_memory, policy, host_memory, disk_folder, devices, options: as in `finemoe.offload`.
    Returns:
        The model, ready to generate, and its engine. Closing the engine leaves the model without experts, as it never had them.
    Raises:
        FinemoeError: no such model, a checkpoint that is incomplete, or what `offload` refuses.
    """
    from finemoe.runtime.random_model import RandomModel
    from finemoe.runtime.skeleton import Skeleton

    source = str(source)
    if source.startswith(_RANDOM):
        skeleton: Skeleton = RandomModel(source.removeprefix(_RANDOM), dtype, options.get("seed", 0))
    else:
        skeleton = Skeleton(folder_of(resolve(source)), dtype)
    return skeleton.load(expert_memory, policy, host_memory, disk_folder, devices, progress, options)


def folder_of(source: str) -> Path:
    """The local folder of a checkpoint, fetched from the hub where it is a hub id."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FinemoeError(f"model {source!r} cannot be fetched from the hub: {reason}") from error
