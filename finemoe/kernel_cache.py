"""A version of Numba's cache of compiled kernels that never prevents a kernel from compiling.

At import, Numba refuses a function for which it finds no writable folder, and it propagates errors of cache files: a truncated
index, a full disk, files of another user. Here each of these only costs a compilation.

Numba also prepares for compilation (types and implementations of all of NumPy) before it loads what is compiled already. In a
process that compiles nothing, this took 40 MB and most of the first replay. Here it waits until something must be compiled.
"""

import contextlib
import functools
import re
from typing import Any

from llvmlite import binding
from numba.core.caching import CompileResultCacheImpl, FunctionCache, InTreeCacheLocator
from numba.core.runtime._nrt_python import c_helpers

from finemoe.uncached import warn_uncached

_OWN_SYMBOL = re.compile(rb"\0(_*(?:NRT|nrt|numba)_\w+)(?=\0)")  # in the symbol table of an object file
_LINKED_IN = {"NRT_incref", "NRT_decref"}  # part of every object that refers to them


class _AsInstalled(InTreeCacheLocator):
    """The folder next to the source, even if it is read-only: kernels compiled at installation can still be loaded from it."""

    def ensure_cache_path(self) -> None:
        """Accept every folder; writing reports an error when there is something to write."""


class _Implementation(CompileResultCacheImpl):
    _locator_classes = [*CompileResultCacheImpl._locator_classes, _AsInstalled]  # noqa: RUF012

    def rebuild(self, target_context: Any, reduced_data: Any) -> Any:
        """The compiled function; Numba's functions that it calls are resolved first, because a missing one ends the process."""
        _, kind, code = reduced_data[0]
        if kind != "object" or not all(map(_is_in_place, _OWN_SYMBOL.findall(code[0]))):
            target_context.refresh()
        return super().rebuild(target_context, reduced_data)


class KernelCache(FunctionCache):
    """The cache of one function, `py_func`."""

    _impl_class = _Implementation

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function for a signature, or None if none can be loaded."""
        try:
            with self._guard_against_spurious_io_errors():
                return self._load_overload(sig, target_context)
        except Exception:  # unpickling a damaged file raises many kinds, the system others for another user's files
            with contextlib.suppress(Exception):
                self.flush()  # otherwise the files named by the damaged index are read again before anything is saved
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the compiled function; if that fails, warn once and state why."""
        try:
            super().save_overload(sig, data)
        except Exception as error:
            warn_uncached(error)


def _is_in_place(symbol: bytes) -> bool:
    """Whether a kernel that calls this function of Numba's runtime would find it."""
    name = symbol.decode()
    _announce_runtime()
    return name in _LINKED_IN or binding.address_of_symbol(name) is not None


@functools.cache
def _announce_runtime() -> None:
    """Register the symbols of Numba's runtime, which allocates and counts arrays. Numba itself does this before it compiles the
    rest of its runtime, which every kernel that needs it includes."""
    for name, address in c_helpers.items():
        binding.add_symbol(name if name.startswith("_") else f"NRT_{name}", address)
