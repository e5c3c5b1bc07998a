"""Values as users hold them, made plain: NumPy's numbers and names become Python's, sequences of numbers become arrays.

What is plain can be saved; what cannot be made so is refused in one line that names the argument.
"""

from collections.abc import Set
from typing import Any

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.units import is_whole


def plain_array(name: str, value: Any) -> np.ndarray:
    """An array of numbers (or of truth values) in this machine's byte order; one that is so already is handed back, also mapped.

    Args:
        name: of the argument. value: an array, nested sequences, a Series, a tensor in the host's memory.
    Raises:
        FinemoeError: it is not made of numbers of at most 64 bits.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise FinemoeError(f"{name} is a masked array, whose mask would be lost; fill it, or leave the masked rows out")
    try:
        array = value if type(value) in (np.ndarray, np.memmap) else np.asarray(value)
    except Exception as error:  # rows of different lengths; a tensor on another device, or one that NumPy has no type for
        reason = " ".join(str(error).split())
        raise FinemoeError(f"{name} cannot be made an array ({reason}); pass a NumPy array or nested lists of numbers") from error
    if array.dtype.kind not in "iufb" or array.dtype.itemsize > 8:
        what = type(value).__name__ if array.ndim == 0 else f"of type {array.dtype}"
        raise FinemoeError(f"{name} must be an array of numbers of at most 64 bits, not {what}")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def narrowed(array: np.ndarray, dtype: type) -> np.ndarray:
    """In that type of integers, if it holds every value: what it does not hold is left for others to refuse by its value."""
    if array.dtype == dtype or array.dtype.kind not in "iuf":
        return array
    with np.errstate(invalid="ignore"):
        narrow: np.ndarray = array.astype(dtype)
    return narrow if np.array_equal(narrow, array) else array


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least `least`.

    Raises:
        FinemoeError: it is none, such as 4.0, True or "4".
    """
    if not is_whole(value) or value < least:
        raise FinemoeError(f"{name} is {value!r}, must be a whole number, at least {least}")
    return int(value)


def whole_numbers(name: str, values: Any) -> tuple[int, ...]:
    """Whole numbers from any sequence of them; none for None.

    Raises:
        FinemoeError: it is no sequence, or one of something else.
    """
    listed = _listed(name, values, "whole numbers")
    for value in listed:
        if not is_whole(value):
            raise FinemoeError(f"{name} must be whole numbers, not {value!r}")
    return tuple(int(value) for value in listed)


def names(name: str, values: Any) -> tuple[Any, ...]:
    """Texts and whole numbers from any sequence of them; none for None.

    Raises:
        FinemoeError: it is no sequence, or one of something else.
    """
    listed = _listed(name, values, "texts or whole numbers")
    for value in listed:
        if not isinstance(value, str) and not is_whole(value):
            raise FinemoeError(f"{name} must be texts or whole numbers, not {value!r} ({type(value).__name__})")
        if is_whole(value) and not -(1 << 63) <= value < 1 << 64:
            raise FinemoeError(f"{name} hold a whole number of {int(value).bit_length()} bits; use 64 at most, or a text")
    return tuple(str(value) if isinstance(value, str) else int(value) for value in listed)


def text(name: str, value: Any) -> str:
    """A text; an empty one for None.

    Raises:
        FinemoeError: it is something else.
    """
    if value is not None and not isinstance(value, str):
        raise FinemoeError(f"{name} must be a text, not {value!r} ({type(value).__name__})")
    return str(value or "")


def _listed(name: str, values: Any, of_what: str) -> list[Any]:
    """In the order given; a single text is no sequence of texts, and a set has no order."""
    if values is None:
        return []
    values = values.tolist() if hasattr(values, "tolist") else values  # of arrays, Series and tensors, with Python's own values
    try:
        if isinstance(values, str | bytes | bytearray | memoryview | Set):
            raise TypeError
        return list(values)
    except TypeError:
        raise FinemoeError(f"{name} must be a sequence of {of_what}, not {values!r} ({type(values).__name__})") from None
