"""What is installed only with an extra: opened by name at run time, and missed in one line."""

from importlib import import_module
from types import ModuleType

from finemoe.errors import FinemoeError


def module_of_extra(name: str, purpose: str, extra: str = "artifact") -> ModuleType:
    """A module that an extra brings, or that needs what it brings.

    Args:
        purpose: what it is wanted for, as the refusal's subject. extra: its name in pyproject.toml.
    Raises:
        FinemoeError: it is not installed; says how to install it.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        advice = f"`pip install 'finemoe[{extra}]'` brings it"
        raise FinemoeError(f"{purpose} needs {error.name}, which is not installed; {advice}") from error
