"""Checks the model that a command names, before anything heavy is imported."""

import os
from pathlib import Path

_FOR_GGUF = "bfloat16"


def require_model(name: str) -> None:
    """Refuse a misspelt model, random weights, and a hub id that cannot be had; use the cached copy if the hub is out of reach.

    Raises:
        FinemoeError: there is no such model, or it has random weights.
    """
    from finemoe.models.shipped import resolve
    from finemoe.models.snapshot_files import require_whole
    from finemoe.runtime.loading import require_tokenizer

    require_tokenizer(name)
    source = resolve(name)
    require_source(source)
    if not Path(source).exists() and _is_offline():
        require_whole(source)


def dtype_to_load(name: str, dtype: str) -> str:
    """The type that a command loads: of a GGUF file's other weights bfloat16 unless another is given, since the float32 that
    Transformers unpacks them to takes twice the memory; of any other model as given."""
    from finemoe.models.shipped import resolve
    from finemoe.runtime.gguf_names import gguf_path

    return _FOR_GGUF if dtype == "auto" and gguf_path(resolve(name)) is not None else dtype


def require_source(source: str, kind: str = "model") -> None:
    """The same for a folder, file or hub id; see `require_on_hub`.

    Raises:
        FinemoeError: it is a hub id that cannot be had.
    """
    from finemoe.models.hub import require_on_hub

    if require_on_hub(source, kind):
        from huggingface_hub import constants

        constants.HF_HUB_OFFLINE = True  # or every file of the cached copy would be asked for, with retries
        os.environ["HF_HUB_OFFLINE"] = "1"


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def is_hub_id(text: str | None) -> bool:
    """Whether a text can only be a hub id, "owner/name"."""
    return text is not None and text.count("/") == 1 and not text.startswith((".", "/")) and not Path(text).exists()
