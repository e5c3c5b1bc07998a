"""What is installed only with an extra: opened by name at run time, and missed in one line."""

from importlib import import_module
from types import ModuleType

from finemoe.errors import FinemoeError


def module_of_extra(name: str, purpose: str) -> ModuleType:
    """A module that the extra `artifact` brings, or that needs what it brings.

    Args:
        purpose: what it is wanted for, as the refusal's subject.
    Raises:
        FinemoeError: it is not installed; says how to install it.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        advice = "`pip install 'finemoe[artifact]'` brings it"
        raise FinemoeError(f"{purpose} needs {error.name}, which is not installed; {advice}") from error
