"""A GGUF file: its checked header, and its tensors as views of the memory-mapped file (llama.cpp's format)."""

import math
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from finemoe.errors import FinemoeError, first_line

_MAGIC = b"GGUF"
_ALIGNMENT = 32  # default alignment of tensors
_AGAIN = "fetch it again"
_PACKAGES = {"gguf": "gguf>=0.10", "accelerate": "accelerate", "transformers.integrations.gguf.reader": "transformers>=5.23"}
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a file.

    Attributes:
        name: llama.cpp's name.
        shape: the last axis is contiguous in memory.
        type_id, type_name: GGML's number and name of its type.
        start, nbytes: position and size in the file.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    type_name: str
    start: int
    nbytes: int

    @property
    def dtype(self) -> torch.dtype | None:
        """Type of its values; None if they are in blocks."""
        return _PLAIN.get(self.type_name)


class GgufFile:
    """The header of a file, and access to its tensors. The file is mapped when needed and unmapped by `close`.

    Args:
        path: the file.
    Attributes:
        architecture: llama.cpp's name of it.
        tensors: all tensors by name.
    Raises:
        FinemoeError: it is not a GGUF file, is truncated or one of several parts, has tensors of an unknown type, or a package
            that is needed to read it is missing.
    """

    def __init__(self, path: Path) -> None:
        require_packages(path)
        self.path = path
        self._metadata, tensors = _header(path)
        self.architecture = str(self._metadata["general.architecture"])
        if int(self._metadata.get("split.count", 1)) > 1:
            raise FinemoeError(
                f"{path}: this is one of {self._metadata['split.count']} parts of a model; merge them into one "
                "file first (llama.cpp's gguf-split --merge)"
            )
        self.tensors = {tensor.name: tensor for tensor in tensors}
        self._mapped: torch.Tensor | None = None

    def number(self, key: str) -> int | None:
        """An integer of the architecture's metadata, such as `expert_count`; None if the file has none."""
        value = self._metadata.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int) else None

    def text(self, key: str) -> str | None:
        """A string of the architecture's metadata; None if the file has none."""
        value = self._metadata.get(f"{self.architecture}.{key}")
        return value if isinstance(value, str) else None

    def read(self, tensor: GgufTensor) -> torch.Tensor:
        """A tensor's values, of its shape, or its blocks, [..., bytes per row] uint8; a read-only view of the file."""
        if self._mapped is None:
            self._mapped = torch.from_file(str(self.path), shared=False, size=self.path.stat().st_size, dtype=torch.uint8)
        data = self._mapped[tensor.start : tensor.start + tensor.nbytes]
        return data.view(*tensor.shape[:-1], -1) if tensor.dtype is None else data.view(tensor.dtype).view(tensor.shape)

    def on_meta(self, tensor: GgufTensor) -> torch.Tensor:
        """The result of `read`, without its values."""
        rows = tensor.shape[:-1]
        per_row = tensor.nbytes // max(1, torch.Size(rows).numel())
        shape, dtype = ((*rows, per_row), torch.uint8) if tensor.dtype is None else (tensor.shape, tensor.dtype)
        return torch.empty(shape, dtype=dtype, device="meta")

    def close(self) -> None:
        """Unmap the file once no view is in use, so that pages that were read no longer count as memory."""
        self._mapped = None


def require_packages(path: Path) -> None:
    """Refuse to go on without the packages that Transformers needs to read GGUF.

    Raises:
        FinemoeError: a package is not installed.
    """
    for module, package in _PACKAGES.items():
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            raise FinemoeError(
                f"{path}: reading GGUF files needs {package}, which is not installed; run `pip install 'finemoe[quantised]'`"
            ) from error


def _header(path: Path) -> tuple[dict[str, Any], list[GgufTensor]]:
    """Metadata by key, and tensors. Uses Transformers' reader: the gguf package's needs seconds and half a GB for a
    vocabulary."""
    with path.open("rb") as file:
        begin = file.read(len(_MAGIC))
    if begin != _MAGIC:
        raise FinemoeError(f"{path}: not a GGUF file: it begins with {begin!r}, not {_MAGIC!r}; {_AGAIN}")
    reader: Any = import_module("transformers.integrations.gguf.reader")
    try:
        mapped = reader._mapped(str(path))
        metadata, count, table = reader._read_metadata(mapped, str(path))
        entries, end = reader._read_tensor_table(mapped, count, table)
        alignment = int(metadata.get("general.alignment", _ALIGNMENT))
        first = -(-end // alignment) * alignment
    except Exception as error:  # damaged bytes may raise anything
        raise FinemoeError(f"{path}: the file is truncated or damaged ({first_line(error)}); {_AGAIN}") from error
    tensors = [_described(path, name, shape, kind, first + offset) for name, shape, kind, offset in entries]
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise FinemoeError(f"{path}: the file is truncated or damaged (two tensors have the same name); {_AGAIN}")
    return metadata, tensors


def _described(path: Path, name: str, shape: tuple[int, ...], type_id: int, start: int) -> GgufTensor:
    package = import_module("gguf")
    try:
        kind = package.GGMLQuantizationType(type_id)
    except ValueError as error:
        raise FinemoeError(
            f"{path}: {name} is of an unknown type, {type_id}; use a file of another type, or a newer gguf package"
        ) from error
    per_block, num_bytes = package.GGML_QUANT_SIZES[kind]
    nbytes = math.prod(shape) // per_block * num_bytes
    if not shape or shape[-1] % per_block or start + nbytes > path.stat().st_size:
        raise FinemoeError(
            f"{path}: the file is truncated or damaged ({name} ends beyond it, or in the middle of a block); {_AGAIN}"
        )
    return GgufTensor(name, shape, type_id, kind.name, start, nbytes)
