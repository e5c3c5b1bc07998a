"""Every generated number of the documentation, by name."""

from functools import cache
from itertools import chain

from finemoe.artifact.docs.engine_numbers import engine_numbers
from finemoe.artifact.docs.figure_numbers import figure_numbers
from finemoe.artifact.docs.generation import generation_numbers
from finemoe.artifact.docs.long_prompts import long_prompt_numbers
from finemoe.artifact.docs.machine_numbers import machine_numbers
from finemoe.artifact.docs.plus import plus_numbers
from finemoe.artifact.docs.reported_numbers import reported_numbers
from finemoe.artifact.docs.tables import Number
from finemoe.errors import FinemoeError

_SOURCES = (
    figure_numbers,
    engine_numbers,
    generation_numbers,
    long_prompt_numbers,
    plus_numbers,
    machine_numbers,
    reported_numbers,
)


@cache
def all_numbers() -> dict[str, Number]:
    """By name, in the order of their sources.

    Raises:
        FinemoeError: two numbers have the same name.
    """
    found: dict[str, Number] = {}
    for number in chain(*(numbers() for numbers in _SOURCES)):
        if number.name in found:
            raise FinemoeError(f"two generated numbers are named {number.name!r}")
        found[number.name] = number
    return found
