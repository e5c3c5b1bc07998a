"""Classes chosen by name: those that finemoe brings, and those of anybody else, which need no change to finemoe.

A class from outside has a name once it was registered in the running process, or where an installed package declares an entry
point for it. Without either it is named by the place where it is written, "module:Class".
"""

import inspect
import re
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from finemoe.errors import FinemoeError, first_line

T = TypeVar("T")
_PLACE = re.compile(r"[\w.]+:[\w.]+")


class Registry(Generic[T]):
    """The classes of one kind.

    Args:
        kind: what messages call them. group: of the entry points. base: what they derive from. given: finemoe's own, by name.
    """

    def __init__(self, kind: str, group: str, base: type[T], given: Mapping[str, type[T]]) -> None:
        self._kind, self._group, self._base, self._given = kind, group, base, given
        self.registered: dict[str, type[T]] = {}

    def register(self, name: str, found: type[T]) -> None:
        """Give a class a name in this process.

        Raises:
            FinemoeError: the name is taken or no plain name, or the class is of another kind.
        """
        if not isinstance(name, str) or not name or ":" in name:
            raise FinemoeError(f"{name!r} is no name for a {self._kind}; give a text without a colon")
        if origins := self._origins(name):
            raise FinemoeError(f"{self._kind} {name!r} is registered already, by {origins[0]}; choose another name")
        self.registered[name] = self._checked(name, found)

    def names(self) -> list[str]:
        """Every name that has a class, in alphabetical order."""
        return sorted({*self._given, *self.registered, *(point.name for point in _points(self._group))})

    def find(self, name: str) -> type[T] | None:
        """The class of that name or place; None where there is none.

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
        """Who has registered a name."""
        origins = ["finemoe"] * (name in self._given) + ["register"] * (name in self.registered)
        return origins + [f"the entry point {point.value!r}" for point in _points(self._group) if point.name == name]

    def _loaded(self, point: EntryPoint) -> type[T]:
        try:
            found = point.load()
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise FinemoeError(f"{self._kind} {point.name!r} cannot be loaded from {point.value!r} ({reason})") from error
        return self._checked(point.name, found)

    def _checked(self, name: str, found: object) -> type[T]:
        base = f"{self._base.__module__}.{self._base.__qualname__}"
        if not isinstance(found, type) or not issubclass(found, self._base):
            raise FinemoeError(f"{self._kind} {name!r} is {found!r}; it must be a class derived from {base}")
        if inspect.isabstract(found):
            lacking = ", ".join(sorted(found.__abstractmethods__))  # type: ignore[attr-defined]
            raise FinemoeError(f"{self._kind} {name!r} lacks {lacking}, which {base} asks for")
        return found


def _points(group: str) -> tuple[EntryPoint, ...]:
    return _points_on(group, tuple(sys.path))


@cache
def _points_on(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """The entry points of the packages on a path, each once; finding them reads every package's metadata."""
    return tuple(dict.fromkeys(entry_points(group=group)))
