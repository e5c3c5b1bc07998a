"""Routing stored layer by layer, one array [tokens, width] each, by torch.save, safetensors or .npz."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finemoe.errors import FinemoeError, first_line
from finemoe.importers.array_files import stored_arrays

_BLOCK_VALUES = 1 << 20
_NUMBERED = re.compile(r"(.*?)[._]?(\d+)")


@dataclass(frozen=True)
class Layer:
    """The rows of one layer. shape: [tokens, width] or [1, tokens, width]. is_whole: whole numbers. rows: reads a slice."""

    shape: tuple[int, ...]
    is_whole: bool
    rows: Callable[[slice], np.ndarray]


def blocks_of(layers: list[Layer]) -> Iterator[tuple[slice, np.ndarray]]:
    """Slices of rows with all layers' values there, [n, L, width].

    Raises:
        FinemoeError: layers differ in tokens or width.
    """
    for number, layer in enumerate(layers):
        if layer.shape != layers[0].shape:
            raise FinemoeError(f"layer {number} is of shape {list(layer.shape)}, but layer 0 of {list(layers[0].shape)}")
    num_rows, width = layers[0].shape[-2:]
    size = max(1, _BLOCK_VALUES // max(1, width * len(layers)))
    for begin in range(0, num_rows, size):
        rows = slice(begin, min(begin + size, num_rows))
        yield rows, np.stack([layer.rows(rows) for layer in layers], axis=1)


def saved_by_torch(path: Path) -> Any:
    """Load, memory-mapped, what torch.save wrote; only plain values and tensors are accepted.

    Raises:
        FinemoeError: it holds anything else, which is not loaded.
    """
    import pickle

    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        told = "it holds more than tensors, lists and numbers, and is not loaded"
        raise FinemoeError(f"{told}; save only the tensors, as torch.save(tuple(t.cpu() for t in ...), file)") from error
    except Exception as error:  # a damaged file can raise anything
        raise FinemoeError(f"is not a torch.save file, or is damaged ({first_line(error)}); save it again") from error


def layers_of_tensors(tensors: Any) -> list[Layer]:
    """The layers in a list, tuple or dict of one tensor per layer.

    Raises:
        FinemoeError: it is of another type.
    """
    import torch

    if isinstance(tensors, Mapping):
        tensors = [tensors[name] for name in numbered(tensors)]
    if not isinstance(tensors, list | tuple) or not tensors or not all(isinstance(one, torch.Tensor) for one in tensors):
        raise FinemoeError("expected a tuple or list of tensors, one for each MoE layer")
    return [_of_tensor(number, tensor) for number, tensor in enumerate(tensors)]


def _of_tensor(number: int, tensor: Any) -> Layer:
    flat = tensor[0] if tensor.dim() == 3 and len(tensor) == 1 else tensor
    if flat.dim() != 2:
        raise FinemoeError(f"layer {number} is of shape {list(tensor.shape)}; expected [tokens, experts] of one sequence")
    is_whole = not flat.is_floating_point()
    return Layer(tuple(flat.shape), is_whole, lambda rows: (flat[rows] if is_whole else flat[rows].float()).numpy())


def layers_of_safetensors(path: Path) -> list[Layer]:
    """The tensors of a safetensors file, in the order of the numbers in their names.

    Raises:
        FinemoeError: the names are not numbered, or the tensors are not two-dimensional.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = numbered(dict.fromkeys(file.keys()))
            return [_of_tensor(number, file.get_tensor(name)) for number, name in enumerate(names)]
    except SafetensorError as error:
        raise FinemoeError(f"truncated or not a safetensors file ({error}); create it again") from error


def layers_of_npz(path: Path) -> list[Layer]:
    """The arrays of an .npz, in the order of the numbers in their names.

    Raises:
        FinemoeError: the names are not numbered, or the arrays are not two-dimensional.
    """
    arrays = stored_arrays(path)
    layers = []
    for name in numbered(arrays):
        array = arrays[name].read()
        if array.ndim != 2 or array.dtype.kind not in "iuf":
            raise FinemoeError(
                f"array {name!r} is of shape {list(array.shape)} and type {array.dtype}; expected [tokens, experts]"
            )
        layers.append(Layer(array.shape, array.dtype.kind in "iu", array.__getitem__))
    return layers


def numbered(named: Mapping[str, Any]) -> list[str]:
    """Names that differ in one number, in the order of the numbers.

    Raises:
        FinemoeError: a name has no number, or they differ in more than the number.
    """
    found = {str(name): _NUMBERED.fullmatch(str(name)) for name in named}
    odd = next((name for name, match in found.items() if match is None), None)
    stems = {match[1] for match in found.values() if match}
    if odd is not None or len(stems) != 1:
        told = ", ".join(list(found)[:6])
        raise FinemoeError(
            f"its tensors are named {told}; expected one for each MoE layer, as router_logits_0, router_logits_1, ..."
        )
    return sorted(found, key=lambda name: int(found[name][2]))  # type: ignore[index]
