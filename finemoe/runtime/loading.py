"""Loads a Transformers model and its tokenizer by name, folder or hub id, with one clear line where that fails."""

from typing import Any

from finemoe.errors import FinemoeError
from finemoe.miniatures.catalog import resolve


def load_model(name: str, dtype: str = "float32") -> tuple[Any, Any]:
    """The model (experts implementation "eager", evaluation mode, CPU) and its tokenizer (padding left).

    Args:
        name: a miniature's name, a folder, or a hub id; dtype: torch type name of the weights.
    Raises:
        FinemoeError: no such model, or its files are incomplete or damaged.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = resolve(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=getattr(torch, dtype), experts_implementation="eager"
        )
    except (OSError, SafetensorError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FinemoeError(f"model {name!r} cannot be loaded from {source}: {reason}") from error
    return model.eval(), tokenizer
