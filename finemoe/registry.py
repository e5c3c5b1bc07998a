"""Things that are chosen by name: the package's own, registered ones, those of installed packages, and "module:object"."""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from finemoe.errors import FinemoeError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names and what they mean, loaded where it is chosen.

    Args:
        kind: what they are, for messages. group: of entry points in which other packages offer theirs.
        places: name to "module:object" of the package's own. require: raises FinemoeError of what is no such thing.
    """

    def __init__(self, kind: str, group: str, places: Mapping[str, str], require: Callable[[str, Any], None]) -> None:
        self._kind, self._group, self._places, self._require = kind, group, dict(places), require
        self._registered: dict[str, T] = {}

    @property
    def own_names(self) -> list[str]:
        """Names of the package's own, in order."""
        return sorted(self._places)

    @property
    def names(self) -> list[str]:
        """All names but those of the form "module:object", in order."""
        return sorted({*self._places, *self._registered, *self._offered()})

    def register(self, name: str, thing: T) -> None:
        """Let `thing` be chosen by a name from now on, in this process.

        Raises:
            FinemoeError: it is no such thing, or the name means something else.
        """
        self._require(name, thing)
        if ":" in name or not name:
            raise FinemoeError(f"{name!r} cannot name an {self._kind}; a name has at least one letter and no colon")
        if name in self._places or self._registered.get(name, thing) is not thing:
            raise FinemoeError(f"there is an {self._kind} {name!r} already; choose another name")
        self._registered[name] = thing

    def find(self, name: str) -> T:
        """What a name means.

        Raises:
            FinemoeError: nothing, or what it means cannot be loaded or is no such thing.
        """
        if name in self._registered:
            return self._registered[name]
        place = self._places.get(name) or (name if ":" in name else self._offered().get(name))
        if place is None:
            raise FinemoeError(f"unknown {self._kind} {name!r}; known: {', '.join(self.names)}")
        found = self._load(name, place)
        self._require(name, found)
        self._registered[name] = found
        return found

    def _load(self, name: str, place: str) -> Any:
        module, _, path = place.partition(":")
        try:
            found: Any = import_module(module)
            for attribute in path.split("."):
                found = getattr(found, attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise FinemoeError(f"{self._kind} {name!r} cannot be loaded ({type(error).__name__}: {error})") from error
        return found

    def _offered(self) -> dict[str, str]:
        return {point.name: point.value for point in entry_points(group=self._group)}
