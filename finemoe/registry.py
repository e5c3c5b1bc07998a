"""Find policies and eviction rules by name: finemoe's own, and any from elsewhere without a change to finemoe.

External code gets a name when it is registered in the running process, or when an installed package declares an entry point for
it. Without either, refer to it by its location, "module:Name".
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from finemoe.errors import FinemoeError, first_line

T = TypeVar("T")
_PLACE = re.compile(r"[\w.]+:[\w.]+")


class Registry(Generic[T]):
    """All known objects of one kind.

    Args:
        kind: what error messages call them.
        group: name of the entry point group.
        require: called with (description, object); returns the object if it is of this kind, otherwise raises FinemoeError.
        given: finemoe's own, by name.
    """

    def __init__(self, kind: str, group: str, require: Callable[[str, object], T], given: Mapping[str, T]) -> None:
        self._kind, self._group, self._require, self._given = kind, group, require, given
        self.registered: dict[str, T] = {}

    def register(self, name: str, found: T) -> None:
        """Give an object a name in this process.

        Raises:
            FinemoeError: the name is taken or is not a plain name, or the object is of another kind.
        """
        if not isinstance(name, str) or not name or ":" in name:
            raise FinemoeError(f"{name!r} cannot be the name of a {self._kind}; use a string without a colon")
        if origins := self._origins(name):
            raise FinemoeError(f"{self._kind} {name!r} is registered already, by {origins[0]}; choose another name")
        self.registered[name] = self._required(name, found)

    @contextmanager
    def naming(self, found: Mapping[str, T]) -> Iterator[None]:
        """Register names within a block only; raises like `register`."""
        given: list[str] = []
        try:
            for name, one in found.items():
                self.register(name, one)
                given.append(name)
            yield
        finally:
            for name in given:
                self.registered.pop(name)

    def names(self) -> list[str]:
        """Every known name, in alphabetical order."""
        return sorted({*self._given, *self.registered, *(point.name for point in _points(self._group))})

    def find(self, name: str) -> T | None:
        """The object with a name or location; None if there is none.

        Raises:
            FinemoeError: several have the name, or it cannot be loaded, or is of another kind.
        """
        if isinstance(name, str) and _PLACE.fullmatch(name):
            return self._loaded(EntryPoint(name, name, self._group))
        origins = self._origins(name)
        if len(origins) > 1:
            raise FinemoeError(f"{self._kind} {name!r} is registered {len(origins)} times, by {' and '.join(origins)}; keep one")
        own = self._given.get(name) or self.registered.get(name)
        if own is not None or not origins:
            return own
        return self._loaded(next(point for point in _points(self._group) if point.name == name))

    def _origins(self, name: str) -> list[str]:
        """Where a name is registered."""
        origins = ["finemoe"] * (name in self._given) + ["register"] * (name in self.registered)
        return origins + [f"the entry point {point.value!r}" for point in _points(self._group) if point.name == name]

    def _loaded(self, point: EntryPoint) -> T:
        try:
            found = point.load()
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise FinemoeError(f"{self._kind} {point.name!r} cannot be loaded from {point.value!r} ({reason})") from error
        return self._required(point.name, found)

    def _required(self, name: str, found: object) -> T:
        return self._require(f"{self._kind} {name!r}", found)


def derived_from(base: type[T]) -> Callable[[str, object], type[T]]:
    """The check for a registry of classes: they derive from a base and implement all its abstract methods."""

    def require(what: str, found: object) -> type[T]:
        name = f"{base.__module__}.{base.__qualname__}"
        if not isinstance(found, type) or not issubclass(found, base):
            raise FinemoeError(f"{what} is {found!r}; it must be a class derived from {name}")
        if inspect.isabstract(found):
            lacking = ", ".join(sorted(found.__abstractmethods__))  # type: ignore[attr-defined]
            raise FinemoeError(f"{what} lacks {lacking}, which {name} requires")
        return found

    return require


def _points(group: str) -> tuple[EntryPoint, ...]:
    return _points_on(group, tuple(sys.path))


@cache
def _points_on(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """The entry points of all packages on a path, without duplicates; cached, since finding them reads all packages' metadata."""
    return tuple(dict.fromkeys(entry_points(group=group)))
