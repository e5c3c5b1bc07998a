"""Load a Transformers model by name, folder or hub id, either whole or with its experts kept off the device."""

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

_RANDOM = "random:"  # prefix of a configuration whose model gets random weights
_POLICY_OPTIONS = ("history", "prefetch_distance", "store_capacity", "seed", "stream_prompts_from")  # that every policy gets


def load_model(name: str, dtype: str = "float32") -> tuple[Any, Any]:
    """Load a whole model on the CPU in evaluation mode, with eager experts, and its tokenizer, which pads on the left.

    Args:
        name: name of a miniature, a folder, or a hub id.
        dtype: type of the weights, as in `load`.
    Raises:
        FinemoeError: the model does not exist, its files are incomplete or damaged, or an adapter is next to them.
    """
    from finemoe.runtime.pretrained import whole_model

    source = _source_of(name)
    if file := gguf_path(source):
        raise FinemoeError(f"{file}: experts of a GGUF file stay packed, so only finemoe.load loads it")
    tokenizer = load_tokenizer(name)
    return whole_model(source, dtype).eval(), tokenizer


def require_tokenizer(name: str) -> None:
    """Refuse a model that has no tokenizer, before anything heavy is imported.

    Raises:
        FinemoeError: it has random weights.
    """
    if name.startswith(_RANDOM):
        raise FinemoeError(
            f"{name}: random weights write no text and have no tokenizer; name a checkpoint, or measure this size in Python "
            "(docs/models.md, 'Measure at real sizes without weights')"
        )


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of a model, which pads on the left.

    Raises:
        FinemoeError: the model does not exist, or its tokenizer is incomplete or damaged.
    """
    require_tokenizer(name)
    from transformers import AutoTokenizer

    from finemoe.runtime.pretrained import in_one_line
    from finemoe.runtime.remarks import without_warnings

    source = _source_of(name)
    file = gguf_path(source)
    folder, told = (source, {}) if file is None else (str(file.parent), {"gguf_file": file.name})
    with in_one_line(f"the tokenizer of {name!r} cannot be loaded from {source}: "), without_warnings():
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False, **told)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what Transformers makes of no files at all
        raise FinemoeError(f"the tokenizer of {name!r} has no words: its files, such as tokenizer.json, are missing in {source}")
    return tokenizer


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
    profile: str | Path | None = None,
    **options: Any,
) -> "tuple[PreTrainedModel, Engine]":
    """Load a model and offload its experts: they go from the checkpoint straight to the expert store, never into the model.

    Args:
        source: name of a miniature, a folder with a safetensors checkpoint (sharded or not, experts fused or separate), a hub
            id, a GGUF file or a folder with nothing else to load, or "random:CONFIG" (a config.json, a folder or a hub id) for
            a model of that size with random weights.
        expert_memory, policy, host_memory, disk_folder, devices: as in `finemoe.offload`.
        dtype: type of the weights; "auto" does as `from_pretrained`: the configuration's type, else the checkpoint's.
        progress: show a progress bar.
        expert_format: "mxfp4", "fp8" or "int8" packs the experts of a bf16, fp16 or fp32 checkpoint while loading. **Lossy**:
            the model then generates the tokens of the packed model. None, the default, keeps the checkpoint's format and is
            lossless.
        profile: a warm-up profile that `Engine.save_profile` wrote, to start from; see `Engine.load_profile`.
        options: further options of `finemoe.offload`. For packed experts, slots="unpacked" also keeps every expert in
            expert memory unpacked next to its slot, instead of unpacking it at each use.
    Returns:
        The model, ready to generate, and its engine. Closing the engine leaves the model without experts.
    Raises:
        FinemoeError: the model does not exist, `from_pretrained` cannot load it or would fill weights with random numbers, an
            adapter is next to the checkpoint, Transformers cannot unpack its quantisation, `offload` refuses it, or the profile
            is damaged or of another model.
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
    if profile is not None and not isinstance(skeleton, RandomModel):  # whose weights are still to be made
        skeleton.require_profile(profile)
    model, engine = skeleton.load(engine_told, told, progress)
    if profile is not None:
        try:
            engine.load_profile(profile)
        except BaseException:
            engine.close()
            raise
    return model, engine


def _gguf_model(path: Path, dtype: Any, expert_format: str | None) -> "Skeleton":
    from finemoe.runtime.gguf_file import require_packages

    require_packages(path)
    from finemoe.runtime.gguf_model import GgufModel

    return GgufModel(path, dtype, expert_format)


def _source_of(name: str) -> str:
    """The folder or hub id that a name stands for; `from_pretrained` would misread a file as a hub id."""
    source = resolve(name)
    if Path(source).is_file() and gguf_path(source) is None:
        raise FinemoeError(f"{source} is a file; give its folder, or {_RANDOM}{source} for a model with random weights")
    return source
