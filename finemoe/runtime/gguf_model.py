"""The model in a GGUF file with all weights except its experts, which go from the file straight to their records."""

from pathlib import Path
from typing import Any

from finemoe.runtime.gguf_step import gguf_model_without_experts
from finemoe.runtime.skeleton import Skeleton


class GgufModel(Skeleton):
    """A model without its experts, built from a GGUF file.

    Args:
        path: the file.
        dtype, expert_format: as in Skeleton.
    Raises:
        FinemoeError: `gguf_model_without_experts` refuses the file, or the model has no experts to offload.
    """

    def __init__(self, path: Path, dtype: Any, expert_format: str | None = None) -> None:
        self._expert_format = expert_format
        model, self._checkpoint = gguf_model_without_experts(path, dtype)
        self._take(model)
