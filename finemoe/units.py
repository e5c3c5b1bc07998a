"""Parse and format byte counts and rates such as "6GiB" and "24GB/s"; recognise whole numbers."""

import re
from numbers import Integral
from typing import Any, TypeGuard

from finemoe.errors import FinemoeError

_FACTORS = {
    "": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate(["", "k", "M", "G", "T"])},
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate(["K", "M", "G", "T"], 1)},
}
_FACTORS["KB"] = 1000
_QUANTITY = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str) -> int:
    """Parse a byte count such as "512MiB" (binary) or "6GB" (decimal).

    Raises:
        FinemoeError: the text is not a number with a known unit.
    """
    match = _QUANTITY.fullmatch(text)
    if not match or match.group(2) not in _FACTORS:
        raise FinemoeError(f"{text!r} is not a byte count; write a number with a unit ({', '.join(list(_FACTORS)[1:])})")
    if "." in match.group(1) and not match.group(2):
        raise FinemoeError(f"{text!r} is not a byte count; add a unit, such as '{text.strip()}GiB', or give a share as a number")
    return int(float(match.group(1)) * _FACTORS[match.group(2)])


def parse_rate(text: str) -> float:
    """Parse a rate such as "24GB/s" into bytes per second."""
    if not text.endswith("/s"):
        raise FinemoeError(f"{text!r} is not a rate; write bytes per second, such as '24GB/s'")
    return float(parse_bytes(text.removesuffix("/s")))


def format_bytes(num_bytes: float) -> str:
    """Format a byte count in binary units: 1536 -> "1.5 KiB"."""
    value = float(num_bytes)
    for unit in ["B", "KiB", "MiB", "GiB"]:
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number, including NumPy's; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)
