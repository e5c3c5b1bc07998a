"""Checks the model that a command names, before anything heavy is imported."""

import os

_RANDOM = "random:"  # a model with random weights of the configuration named


def require_model(name: str) -> None:
    """Refuse a misspelt model, and a hub id that cannot be had; take the cached copy if the hub cannot be reached.

    Raises:
        FinemoeError: there is no such model.
    """
    from finemoe.models.shipped import resolve

    require_source(resolve(name.removeprefix(_RANDOM)))


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


def is_hub_id(text: str | None) -> bool:
    """Whether a text can only be a hub id, "owner/name"."""
    from pathlib import Path

    return text is not None and text.count("/") == 1 and not text.startswith((".", "/")) and not Path(text).exists()
