"""Names of the shipped miniatures, and the conversion of a model's name to something that Transformers can load."""

from pathlib import Path

from finemoe.errors import FinemoeError
from finemoe.paths import MINIATURES
from finemoe.suggestions import suggestion

NAMES = ("mixtral-mini", "qwen-mini", "phi-mini")
TITLES = {
    "mixtral-mini": "Mixtral-8x7B miniature (32 × 8 / 2)",
    "qwen-mini": "Qwen1.5-MoE miniature (24 × 60 / 4)",
    "phi-mini": "Phi-3.5-MoE miniature (32 × 16 / 2)",
}


def resolve(name: str) -> str:
    """The folder of a miniature for its name; an existing path, and a hub id with one slash, are returned unchanged.

    Raises:
        FinemoeError: the name is not one of these.
    """
    if name in NAMES:
        folder = MINIATURES / name
        if not folder.is_dir():
            raise FinemoeError(f"{folder}: the miniature is missing; train it with `snakemake train_miniatures`")
        return str(folder)
    if (name and Path(name).exists()) or (name.count("/") == 1 and not name.startswith((".", "/"))):
        return name
    raise FinemoeError(f"unknown model {name!r}; {suggestion(name, NAMES)}, or give a local folder or a hub id 'owner/name'")
