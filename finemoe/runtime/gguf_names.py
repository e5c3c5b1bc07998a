"""Finds the GGUF file that a source stands for."""

from pathlib import Path

from finemoe.errors import FinemoeError

SUFFIX = ".gguf"
_OTHERS = ("config.json", "model.safetensors", "model.safetensors.index.json")  # preferred to GGUF in a folder


def gguf_path(source: str) -> Path | None:
    """The GGUF file that a source stands for: itself, or the only one in a folder without another checkpoint; None if there is
    none.

    Raises:
        FinemoeError: a folder holds several.
    """
    path = Path(source)
    if path.is_file():
        return path if path.suffix == SUFFIX else None
    if not path.is_dir() or any((path / name).exists() for name in _OTHERS):
        return None
    found = sorted(one for one in path.iterdir() if one.suffix == SUFFIX)
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise FinemoeError(
            f"{source}: several GGUF files ({names}); give the path of one, and merge the parts of a split file first "
            "(llama.cpp's gguf-split --merge)"
        )
    return found[0] if found else None
