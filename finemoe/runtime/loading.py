"""Loads a Transformers model by name, folder or hub id, whole or with its experts left outside the device."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemoe.errors import FinemoeError
from finemoe.models.shipped import resolve
from finemoe.runtime.gguf_names import gguf_path

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from finemoe.runtime.engine import Engine
    from finemoe.runtime.skeleton import Skeleton

_RANDOM = "random:"  # before what configures a model with random weights
_POLICY_OPTIONS = ("history", "prefetch_distance", "store_capacity", "seed")  # that a policy is told, whichever it is


def load_model(name: str, dtype: str = "float32") -> tuple[Any, Any]:
    """The model (experts implementation "eager", evaluation mode, CPU) and its tokenizer (padding left).

    Args:
        name: a miniature's name, a folder, or a hub id; dtype: of the weights, as in `load`.
    Raises:
        FinemoeError: no such model, its files are incomplete or damaged, or an adapter lies beside them.
    """
    from finemoe.runtime.pretrained import whole_model

    source = _source_of(name)
    if file := gguf_path(source):
        raise FinemoeError(f"{file}: a GGUF file is loaded with its experts packed, by finemoe.load alone")
    tokenizer = load_tokenizer(name)
    return whole_model(source, dtype).eval(), tokenizer


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model, padding on the left.

    Raises:
        FinemoeError: no such model, or its tokenizer is incomplete or damaged.
    """
    from transformers import AutoTokenizer

    from finemoe.runtime.pretrained import in_one_line

    source = _source_of(name)
    file = gguf_path(source)
    folder, told = (source, {}) if file is None else (str(file.parent), {"gguf_file": file.name})
    with in_one_line(f"the tokenizer of {name!r} cannot be loaded from {source}: "):
        return AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False, **told)


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
    expert_format: str | None = None,
    **options: Any,
) -> "tuple[PreTrainedModel, Engine]":
    """A model whose experts were never all in memory: read from its checkpoint straight to where they wait.

    Args:
        source: a miniature's name, a folder with a safetensors checkpoint (sharded or not, experts fused or apart), a hub id, a
            GGUF file or a folder with one and nothing else to load, or "random:CONFIG" (a config.json, a folder or a hub id) for
            a model of that size with random weights.
        dtype: of the weights; "auto" is what `from_pretrained` makes of it: the configuration's, else the checkpoint's.
        progress: show a bar.
        expert_format: "mxfp4", "fp8" or "int8" packs the experts of a checkpoint in bf16, fp16 or fp32 while it is loaded.
            **Lossy**: tokens are the packed model's. None, the default, takes a checkpoint as it is, and loses nothing.
        expert_memory, policy, host_memory, disk_folder, devices, options: as in `finemoe.offload`; and, for packed experts,
            slots="unpacked", which keeps an expert unpacked beside its slot instead of unpacking it whenever it is used.
    Returns:
        The model, ready to generate, and its engine. Closing the engine leaves the model without experts, as it never had them.
    Raises:
        FinemoeError: no such model, what `from_pretrained` cannot load or would fill with random numbers, an adapter beside the
            checkpoint, a quantisation that Transformers cannot unpack, or what `offload` refuses.
    """
    from finemoe.packing.formats import require_format
    from finemoe.runtime.options import engine_options
    from finemoe.runtime.pretrained import type_of
    from finemoe.runtime.random_model import RandomModel
    from finemoe.runtime.skeleton import Skeleton

    source, dtype = str(source), type_of(dtype)
    if expert_format is not None:
        require_format(expert_format)
    told = {name: options.pop(name) for name in _POLICY_OPTIONS if name in options}
    engine_told = engine_options(
        expert_memory, policy, host_memory=host_memory, disk_folder=disk_folder, devices=devices, **options
    )
    if source.startswith(_RANDOM):
        skeleton: Skeleton = RandomModel(source.removeprefix(_RANDOM), dtype, told.get("seed", 0), expert_format)
    elif file := gguf_path(source := _source_of(source)):
        skeleton = _gguf_model(file, dtype, expert_format)
    else:
        skeleton = Skeleton(source, dtype, expert_format)
    return skeleton.load(engine_told, told, progress)


def _gguf_model(path: Path, dtype: Any, expert_format: str | None) -> "Skeleton":
    from finemoe.runtime.gguf_file import require_packages

    require_packages(path)
    from finemoe.runtime.gguf_model import GgufModel

    return GgufModel(path, dtype, expert_format)


def _source_of(name: str) -> str:
    """The folder or hub id meant; `from_pretrained` would take a file for a strange hub id."""
    source = resolve(name)
    if Path(source).is_file() and gguf_path(source) is None:
        raise FinemoeError(
            f"{source} is a file; give the folder that it lies in, or, for a model of random weights, {_RANDOM}{source}"
        )
    return source
