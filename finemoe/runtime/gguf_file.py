"""A GGUF file: its header, checked, and its tensors as views of the mapped file (llama.cpp's format)."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from finemoe.errors import FinemoeError, first_line

_MAGIC = b"GGUF"
_AGAIN = "fetch it again"
_PACKAGES = {"gguf": "gguf>=0.10", "accelerate": "accelerate", "transformers.integrations.gguf.reader": "transformers>=5.23"}
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a file.

    Attributes:
        name: llama.cpp's; shape: the last axis lies together in memory. type_id: GGML's number of its type; type_name: in words.
        start, nbytes: where it lies in the file.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    type_name: str
    start: int
    nbytes: int

    @property
    def dtype(self) -> torch.dtype | None:
        """Of its values; None where they are in blocks."""
        return _PLAIN.get(self.type_name)


class GgufFile:
    """The header of a file, and access to what it describes; the file is mapped when needed, and let go by `close`.

    Args:
        path: of the file.
    Attributes:
        architecture: llama.cpp's name of it; tensors: by name.
    Raises:
        FinemoeError: it is no GGUF file, is truncated or one of several parts, has tensors of an unknown type, or a package is
            missing that reading it takes.
    """

    def __init__(self, path: Path) -> None:
        require_packages(path)
        self.path = path
        reader = _reader(path)
        self._numbers = {key: field.contents() for key, field in reader.fields.items() if _is_number(field)}
        named = reader.get_field("general.architecture")
        if named is None:
            raise FinemoeError(f"{path}: its header names no architecture (general.architecture); {_AGAIN}")
        self.architecture = str(named.contents())
        if int(self._numbers.get("split.count", 1)) > 1:
            raise FinemoeError(
                f"{path}: one of {self._numbers['split.count']} parts of a model, which are not read apart; merge them into one "
                "file first (llama.cpp's gguf-split --merge)"
            )
        self.tensors = {one.name: one for one in map(_described, reader.tensors)}
        self._mapped: torch.Tensor | None = None

    def number(self, key: str) -> int | None:
        """A whole number of the architecture's metadata, as `expert_count`; None where the file does not say."""
        value = self._numbers.get(f"{self.architecture}.{key}")
        return None if value is None else int(value)

    def read(self, tensor: GgufTensor) -> torch.Tensor:
        """A tensor's values, of its shape, or blocks, [..., bytes of a row] uint8; a view of the file, not to be written to."""
        if self._mapped is None:
            self._mapped = torch.from_file(str(self.path), shared=False, size=self.path.stat().st_size, dtype=torch.uint8)
        data = self._mapped[tensor.start : tensor.start + tensor.nbytes]
        return data.view(*tensor.shape[:-1], -1) if tensor.dtype is None else data.view(tensor.dtype).view(tensor.shape)

    def on_meta(self, tensor: GgufTensor) -> torch.Tensor:
        """What `read` gives, without its values."""
        rows = tensor.shape[:-1]
        per_row = tensor.nbytes // max(1, torch.Size(rows).numel())
        shape, dtype = ((*rows, per_row), torch.uint8) if tensor.dtype is None else (tensor.shape, tensor.dtype)
        return torch.empty(shape, dtype=dtype, device="meta")

    def close(self) -> None:
        """Unmap the file, once no view is in use, so that pages read no longer count as memory."""
        self._mapped = None


def require_packages(path: Path) -> None:
    """Refuse without what Transformers needs to read GGUF.

    Raises:
        FinemoeError: a package is not installed.
    """
    for module, package in _PACKAGES.items():
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            raise FinemoeError(f"{path}: reading a GGUF file takes {package}; pip install '{package}'") from error


def _reader(path: Path) -> Any:
    with path.open("rb") as file:
        begin = file.read(len(_MAGIC))
    if begin != _MAGIC:
        raise FinemoeError(f"{path}: no GGUF file, since it begins with {begin!r}, not {_MAGIC!r}; {_AGAIN}")
    try:
        # First what ends at the end of the file: of a length that is damaged GGUFReader would read on and on.
        import_module("transformers.integrations.gguf.reader").read_gguf_metadata(path)
        return import_module("gguf").GGUFReader(path)
    except Exception as error:  # whatever NumPy says of bytes that are not there
        reason = first_line(error)
        if "GGMLQuantizationType" in reason:
            raise FinemoeError(
                f"{path}: it holds a tensor of an unknown type ({reason}); use a file of another type, or a newer gguf package"
            ) from error
        raise FinemoeError(f"{path}: truncated or damaged ({reason}); {_AGAIN}") from error


def _is_number(field: Any) -> bool:
    return [kind.name for kind in field.types] in (["UINT16"], ["UINT32"], ["INT32"], ["UINT64"], ["INT64"])


def _described(tensor: Any) -> GgufTensor:
    shape = tuple(int(size) for size in reversed(tensor.shape.tolist()))
    kind = tensor.tensor_type
    return GgufTensor(str(tensor.name), shape, int(kind), kind.name, int(tensor.data_offset), int(tensor.n_bytes))
