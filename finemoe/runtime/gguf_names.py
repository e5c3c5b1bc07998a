"""Which GGUF file a source means."""

from pathlib import Path

from finemoe.errors import FinemoeError

SUFFIX = ".gguf"
_OTHERS = ("config.json", "model.safetensors", "model.safetensors.index.json")  # whose folders are read as those files'


def gguf_path(source: str) -> Path | None:
    """The GGUF file that a source means: itself, or the one in a folder that holds no other checkpoint; None if it means none.

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
            f"{source}: several GGUF files ({names}); give the path of the one meant, and merge the parts of a split one first "
            "(llama.cpp's gguf-split --merge)"
        )
    return found[0] if found else None
