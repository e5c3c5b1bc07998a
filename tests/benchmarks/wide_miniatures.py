"""Widened miniatures as checkpoints on disk."""

from pathlib import Path

from finemoe.artifact.miniatures.widening import widen
from finemoe.runtime.loading import load_model

_WIDTHS = ("moe_intermediate_size", "intermediate_size")  # of an expert, the first that a configuration has


def save_widened(name: str, times: int, folder: Path) -> None:
    """Write a miniature with experts `times` as wide, in bf16, and its tokenizer into a folder."""
    model, tokenizer = load_model(name, "bfloat16")
    widen(model, times)
    width = next(width for width in _WIDTHS if hasattr(model.config, width))
    setattr(model.config, width, getattr(model.config, width) * times)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
