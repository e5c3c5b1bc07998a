"""Import optional dependencies at run time; if one is missing, the error names the extra to install."""

from importlib import import_module
from types import ModuleType

from finemoe.errors import FinemoeError


def module_of_extra(name: str, purpose: str, extra: str = "artifact") -> ModuleType:
    """Import a module that an extra installs, or one that needs a package from an extra.

    Args:
        name: the module's full name.
        purpose: what it is needed for; the subject of the error message.
        extra: name of the extra in pyproject.toml.
    Raises:
        FinemoeError: the module is not installed; the message states how to install it.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        advice = f"install it with `pip install 'finemoe[{extra}]'`"
        raise FinemoeError(f"{purpose} needs {error.name}, which is not installed; {advice}") from error
