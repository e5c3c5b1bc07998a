"""Policies and eviction rules are chosen by name: finemoe's own, and those of anybody else, which need no change to finemoe.

What is from outside has a name once it was registered in the running process, or where an installed package declares an entry
point for it. Without either it is named by the place where it is written, "module:Name".
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
    """The things of one kind.

    Args:
        kind: what messages call them. group: of the entry points. given: finemoe's own, by name.
        require: (what it is called, anything): returns what is of this kind, and raises FinemoeError of anything else.
    """

    def __init__(self, kind: str, group: str, require: Callable[[str, object], T], given: Mapping[str, T]) -> None:
        self._kind, self._group, self._require, self._given = kind, group, require, given
        self.registered: dict[str, T] = {}

    def register(self, name: str, found: T) -> None:
        """Give one a name in this process.

        Raises:
            FinemoeError: the name is taken or no plain name, or it is of another kind.
        """
        if not isinstance(name, str) or not name or ":" in name:
            raise FinemoeError(f"{name!r} is no name for a {self._kind}; give a text without a colon")
        if origins := self._origins(name):
            raise FinemoeError(f"{self._kind} {name!r} is registered already, by {origins[0]}; choose another name")
        self.registered[name] = self._required(name, found)

    @contextmanager
    def naming(self, found: Mapping[str, T]) -> Iterator[None]:
        """Give some names within a block only; raises as `register`."""
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
        """Every name that has a meaning, in alphabetical order."""
        return sorted({*self._given, *self.registered, *(point.name for point in _points(self._group))})

    def find(self, name: str) -> T | None:
        """What has that name or place; None where nothing has.

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
    """What a registry of classes requires: whole ones, derived from a base."""

    def require(what: str, found: object) -> type[T]:
        name = f"{base.__module__}.{base.__qualname__}"
        if not isinstance(found, type) or not issubclass(found, base):
            raise FinemoeError(f"{what} is {found!r}; it must be a class derived from {name}")
        if inspect.isabstract(found):
            lacking = ", ".join(sorted(found.__abstractmethods__))  # type: ignore[attr-defined]
            raise FinemoeError(f"{what} lacks {lacking}, which {name} asks for")
        return found

    return require


def _points(group: str) -> tuple[EntryPoint, ...]:
    return _points_on(group, tuple(sys.path))


@cache
def _points_on(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """The entry points of the packages on a path, each once; finding them reads every package's metadata."""
    return tuple(dict.fromkeys(entry_points(group=group)))
