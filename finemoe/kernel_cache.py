"""Numba's cache of compiled kernels, which helps where it can and never stops a kernel that compiles.

Numba refuses at import a function for which it finds no folder to write in, and passes on what goes wrong with a file of the
cache: an index cut short, a full disk, another user's files. Here each of these costs a compilation and nothing else.

Numba also gets ready to compile before it reads what is compiled already: types and implementations of all of NumPy, which took a
process that compiles nothing 40 MB and most of its first replay. Here that waits until something is compiled.
"""

import contextlib
import functools
import re
from typing import Any

from llvmlite import binding
from numba.core.caching import CompileResultCacheImpl, FunctionCache, InTreeCacheLocator
from numba.core.runtime._nrt_python import c_helpers

from finemoe.uncached import warn_uncached

_OWN_SYMBOL = re.compile(rb"\0(_*(?:NRT|nrt|numba)_\w+)(?=\0)")  # in an object file's table of names
_LINKED_IN = {"NRT_incref", "NRT_decref"}  # into every object that names them


class _AsInstalled(InTreeCacheLocator):
    """Beside the source, where nothing can be written: kernels compiled at installation are read there all the same."""

    def ensure_cache_path(self) -> None:
        """What cannot be written shows when there is something to write."""


class _Implementation(CompileResultCacheImpl):
    _locator_classes = [*CompileResultCacheImpl._locator_classes, _AsInstalled]  # noqa: RUF012

    def rebuild(self, target_context: Any, reduced_data: Any) -> Any:
        """The compiled function; what it calls of Numba must be in its place first, or the process would end."""
        _, kind, code = reduced_data[0]
        if kind != "object" or not all(map(_is_in_place, _OWN_SYMBOL.findall(code[0]))):
            target_context.refresh()
        return super().rebuild(target_context, reduced_data)


class KernelCache(FunctionCache):
    """The cache of one function, `py_func`."""

    _impl_class = _Implementation

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function for that signature, or None where there is none that can be read."""
        try:
            with self._guard_against_spurious_io_errors():
                return self._load_overload(sig, target_context)
        except Exception:  # whatever unpickling a damaged file raises, or the system where it is another user's
            with contextlib.suppress(Exception):
                self.flush()  # what the damaged index names would be read again before anything is saved
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the compiled function, or say once why it cannot be kept."""
        try:
            super().save_overload(sig, data)
        except Exception as error:
            warn_uncached(error)


def _is_in_place(symbol: bytes) -> bool:
    """Whether a kernel that calls one of Numba's own functions would find it."""
    name = symbol.decode()
    _announce_runtime()
    return name in _LINKED_IN or binding.address_of_symbol(name) is not None


@functools.cache
def _announce_runtime() -> None:
    """Say where Numba's runtime is, which makes and counts arrays. Numba itself does so before it compiles that runtime's rest,
    which every kernel that needs it brings along."""
    for name, address in c_helpers.items():
        binding.add_symbol(name if name.startswith("_") else f"NRT_{name}", address)
