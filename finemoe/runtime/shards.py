"""The files of a checkpoint, read tensor by tensor."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.core_model_loading import dot_natural_key
from transformers.modeling_utils import str_to_torch_dtype

from finemoe.errors import FinemoeError

_DTYPES = str_to_torch_dtype | {"F8_E8M0": torch.float8_e8m0fnu}  # Transformers reads it but has no entry for it


class Shards:
    """The tensors of safetensors files by name; files are opened when needed and closed by `close`.

    Args:
        files: in Transformers' order; if several files hold a tensor, the last one counts, as in Transformers.
    Raises:
        FinemoeError: a file is missing or truncated.
    """

    def __init__(self, files: Sequence[str | Path]) -> None:
        self.files = [str(file) for file in files]
        self._open: dict[str, Any] = {}
        self._file_of = {name: file for file in self.files for name in self._handle(file).keys()}  # noqa: SIM118
        self.close()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._file_of, key=dot_natural_key))

    def file_of(self, name: str) -> str:
        """Name of the file that holds a tensor."""
        return Path(self._file_of[name]).name

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return tuple(self._slice(name).get_shape())

    def dtype_name(self, name: str) -> str:
        """A tensor's type in safetensors' notation."""
        return str(self._slice(name).get_dtype())

    def on_meta(self, name: str) -> torch.Tensor:
        """A tensor's shape and type without its values: not a single page of the file is read."""
        part = self._slice(name)
        return torch.empty(part.get_shape(), dtype=_DTYPES[part.get_dtype()], device="meta")

    def lazily(self, absent: Callable[[str], bool]) -> dict[str, Any]:
        """All tensors in the form that Transformers accepts, read when they are indexed; the `absent` ones never have values."""
        return {name: _Absent(self, name) if absent(name) else self._slice(name) for name in self._file_of}

    def read(self, name: str) -> torch.Tensor:
        """A whole tensor, memory-mapped from the file."""
        tensor: torch.Tensor = self._slice(name)[...]
        return tensor

    def read_row(self, name: str, index: int) -> torch.Tensor:
        """One entry of a tensor's first axis, [1, ...]."""
        tensor: torch.Tensor = self._slice(name)[index : index + 1]
        return tensor

    def close(self) -> None:
        """Unmap every file."""
        self._open.clear()

    def _slice(self, name: str) -> Any:
        return self._handle(self._file_of[name]).get_slice(name)

    def _handle(self, file: str) -> Any:
        from safetensors import SafetensorError, safe_open

        if file not in self._open:
            try:
                self._open[file] = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise FinemoeError(f"{file}: the file is missing or truncated ({error}); fetch the checkpoint again") from error
        return self._open[file]


class _Absent:
    """Stands in for a file's tensor that must not be read."""

    def __init__(self, shards: Shards, name: str) -> None:
        self._shards, self._name = shards, name

    def __getitem__(self, _: Any) -> torch.Tensor:
        return self._shards.on_meta(self._name)

    def get_dtype(self) -> str:
        """The type in safetensors' notation; for a quantised checkpoint, Transformers asks for it before it reads."""
        return self._shards.dtype_name(self._name)
