"""The model in a GGUF file with every weight but the experts', which go from the file to their records."""

from pathlib import Path
from typing import Any

from finemoe.runtime.gguf_step import gguf_model_without_experts
from finemoe.runtime.skeleton import Skeleton


class GgufModel(Skeleton):
    """A model without its experts, made from a GGUF file.

    Args:
        path: of the file; dtype, expert_format: as Skeleton's.
    Raises:
        FinemoeError: what `gguf_model_without_experts` refuses, or the model has no experts to offload.
    """

    def __init__(self, path: Path, dtype: Any, expert_format: str | None = None) -> None:
        self._expert_format = expert_format
        model, self._checkpoint = gguf_model_without_experts(path, dtype)
        self._take(model)
