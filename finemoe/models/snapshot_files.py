"""Which files of a checkpoint the Hugging Face cache lacks, for a model that can only be read from there."""

import json
from pathlib import Path

from finemoe.errors import FinemoeError

_INDEX, _WEIGHTS = "model.safetensors.index.json", "model.safetensors"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
_NUM_NAMED = 2


def require_whole(model: str) -> None:
    """Refuse a cached model that lacks its configuration, tokenizer or weights; loading would fail after a while, file by file.

    Raises:
        FinemoeError: a file is missing; the message names it.
    """
    missing = _missing(model)
    if missing:
        named = ", ".join(missing[:_NUM_NAMED]) + (
            f" and {len(missing) - _NUM_NAMED} more files" if len(missing) > _NUM_NAMED else ""
        )
        raise FinemoeError(
            f"model {model!r} is only partly in the Hugging Face cache, which lacks {named}; "
            "connect to the hub (without HF_HUB_OFFLINE) to download the rest, or give a folder"
        )


def _missing(model: str) -> list[str]:
    lacks = [] if _cached(model, "config.json") else ["config.json"]
    index = _cached(model, _INDEX)
    if index is not None:
        shards = dict.fromkeys(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        lacks += [shard for shard in shards if _cached(model, shard) is None]
    elif not any(_cached(model, name) for name in (_WEIGHTS, "pytorch_model.bin", "pytorch_model.bin.index.json")):
        lacks.append(_WEIGHTS)
    return lacks if any(_cached(model, name) for name in _TOKENIZERS) else [*lacks, _TOKENIZERS[0]]


def _cached(model: str, name: str) -> Path | None:
    """A file of the cached snapshot; None if it is missing or its link is broken."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, name)
    return Path(found) if isinstance(found, str) and Path(found).is_file() else None
