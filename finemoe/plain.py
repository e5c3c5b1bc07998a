"""Convert user input to plain values: NumPy numbers and strings become Python's, sequences of numbers become arrays.

Plain values can be saved. A value that cannot be converted is refused with a one-line error that names the argument.
"""

from collections.abc import Set
from typing import Any

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.units import is_whole


def plain_array(name: str, value: Any) -> np.ndarray:
    """Convert to an array of numbers (or booleans) in native byte order; such an array, mapped or not, is returned unchanged.

    Args:
        name: name of the argument, for error messages.
        value: an array, nested sequences, a Series, or a tensor in host memory.
    Raises:
        FinemoeError: the value is not made of numbers of at most 64 bits.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise FinemoeError(f"{name} is a masked array, whose mask would be lost; fill it, or leave out the masked rows")
    try:
        array = value if type(value) in (np.ndarray, np.memmap) else np.asarray(value)
    except Exception as error:  # rows of different lengths, a tensor on another device, or a type that NumPy lacks
        reason = " ".join(str(error).split())
        raise FinemoeError(f"{name} cannot be converted to an array ({reason}); pass a NumPy array or nested lists") from error
    if array.dtype.kind not in "iufb" or array.dtype.itemsize > 8:
        what = type(value).__name__ if array.ndim == 0 else f"of type {array.dtype}"
        raise FinemoeError(f"{name} must be an array of numbers of at most 64 bits, not {what}")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def narrowed(array: np.ndarray, dtype: type) -> np.ndarray:
    """Convert to an integer type if it holds every value; otherwise leave the array for later checks, which name the value."""
    if array.dtype == dtype or array.dtype.kind not in "iuf":
        return array
    with np.errstate(invalid="ignore"):
        narrow: np.ndarray = array.astype(dtype)
    return narrow if np.array_equal(narrow, array) else array


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """Check that a value is a whole number of at least `least`, and return it as an int.

    Raises:
        FinemoeError: it is not, for example 4.0, True or "4".
    """
    if not is_whole(value) or value < least:
        raise FinemoeError(f"{name} is {value!r}; it must be a whole number, at least {least}")
    return int(value)


def whole_numbers(name: str, values: Any) -> tuple[int, ...]:
    """Convert any sequence of whole numbers to a tuple of ints; None gives an empty tuple.

    Raises:
        FinemoeError: it is not a sequence, or has an entry that is not a whole number.
    """
    listed = _listed(name, values, "whole numbers")
    for value in listed:
        if not is_whole(value):
            raise FinemoeError(f"{name} must be whole numbers, not {value!r}")
    return tuple(int(value) for value in listed)


def names(name: str, values: Any) -> tuple[Any, ...]:
    """Convert any sequence of strings and whole numbers to a tuple; None gives an empty tuple.

    Raises:
        FinemoeError: it is not a sequence, or has an entry of another type.
    """
    listed = _listed(name, values, "strings or whole numbers")
    for value in listed:
        if not isinstance(value, str) and not is_whole(value):
            raise FinemoeError(f"{name} must be strings or whole numbers, not {value!r} ({type(value).__name__})")
        if is_whole(value) and not -(1 << 63) <= value < 1 << 64:
            raise FinemoeError(f"{name} has a whole number of {int(value).bit_length()} bits; use at most 64, or a string")
    return tuple(str(value) if isinstance(value, str) else int(value) for value in listed)


def text(name: str, value: Any) -> str:
    """Check that a value is a string and return it; None gives an empty string.

    Raises:
        FinemoeError: it is of another type.
    """
    if value is not None and not isinstance(value, str):
        raise FinemoeError(f"{name} must be a string, not {value!r} ({type(value).__name__})")
    return str(value or "")


def _listed(name: str, values: Any, of_what: str) -> list[Any]:
    """The entries in order; a single string does not count as a sequence of strings, and a set has no order."""
    if values is None:
        return []
    values = values.tolist() if hasattr(values, "tolist") else values  # arrays, Series and tensors, as Python values
    try:
        if isinstance(values, str | bytes | bytearray | memoryview | Set):
            raise TypeError
        return list(values)
    except TypeError:
        raise FinemoeError(f"{name} must be a sequence of {of_what}, not {values!r} ({type(values).__name__})") from None
