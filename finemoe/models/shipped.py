"""Names of the shipped miniatures, and how a model's name becomes something Transformers can load."""

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
    """A miniature's folder for its name, an existing path as it is, anything with one slash as a hub id.

    Raises:
        FinemoeError: the name is none of these.
    """
    if name in NAMES:
        folder = MINIATURES / name
        if not folder.is_dir():
            raise FinemoeError(f"{folder}: the miniature is missing; train it with `snakemake train_miniatures`")
        return str(folder)
    if (name and Path(name).exists()) or (name.count("/") == 1 and not name.startswith((".", "/"))):
        return name
    raise FinemoeError(f"unknown model {name!r}; {suggestion(name, NAMES)}, or give a local folder or a hub id 'owner/name'")
