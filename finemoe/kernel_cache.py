"""Numba's cache of compiled kernels, which helps where it can and never stops a kernel that compiles.

Numba refuses at import a function for which it finds no folder to write in, and passes on what goes wrong with a file of the
cache: an index cut short, a full disk, another user's files. Here each of these costs a compilation and nothing else.
"""

import contextlib
from typing import Any

from numba.core.caching import CompileResultCacheImpl, FunctionCache, InTreeCacheLocator

from finemoe.uncached import warn_uncached


class _AsInstalled(InTreeCacheLocator):
    """Beside the source, where nothing can be written: kernels compiled at installation are read there all the same."""

    def ensure_cache_path(self) -> None:
        """What cannot be written shows when there is something to write."""


class _Implementation(CompileResultCacheImpl):
    _locator_classes = [*CompileResultCacheImpl._locator_classes, _AsInstalled]  # noqa: RUF012


class KernelCache(FunctionCache):
    """The cache of one function, `py_func`."""

    _impl_class = _Implementation

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function for that signature, or None where there is none that can be read."""
        try:
            return super().load_overload(sig, target_context)
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
