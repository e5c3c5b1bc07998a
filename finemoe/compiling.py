"""Compile inner loops with Numba, or run them uncompiled where Numba cannot be imported: slower, with the same results.

Loops are written to give the same results either way: where Numba computes in 64 bits, so does NumPy.
"""

import functools
import importlib
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from typing import Any

from finemoe.errors import FinemoeError
from finemoe.interrupts import interrupts_wait
from finemoe.uncached import warn_uncached

numba: Any = None
try:
    with interrupts_wait():  # an interrupted import leaves Numba half imported, and a second import then fails
        numba = importlib.import_module("numba")
except Exception as error:  # a NumPy that is too new makes Numba's import fail with various exceptions
    warnings.warn(
        f"Numba cannot be imported ({type(error).__name__}: {error}): searches, predictors and replays run uncompiled, with the "
        "same results but hundreds of times slower; do not use measured times; install a Numba version that supports this NumPy",
        RuntimeWarning,
        stacklevel=2,
    )
IS_COMPILED = numba is not None and not numba.config.DISABLE_JIT
_reporting = threading.Lock()  # held while `sys.unraisablehook` is replaced


def njit(function: Callable[..., Any] | None = None, *, cache: bool = False, **options: Any) -> Any:
    """Like `numba.njit`, with or without options; without Numba, return the function unchanged.

    Args:
        cache: keep the compiled code for later processes if Numba finds a folder for it; if it finds none, or cannot use the
            cached code, the function is compiled again.
    """
    if function is None:
        return functools.partial(njit, cache=cache, **options)
    if not IS_COMPILED:
        return function
    compiled = numba.njit(**options)(function)
    if cache and compiled is not function:  # they are the same if NUMBA_DISABLE_JIT is set
        _keep(compiled)
    return compiled


# For functions that only index arrays owned by their callers: Numba's reference counting took 60 % of a replay's time. Such a
# function may pass what it makes of an array (a row, a view) only to other functions of this kind.
borrowing = functools.partial(njit, cache=True, _nrt=False, forceinline=True)


def _keep(dispatcher: Any) -> None:
    """Like `dispatcher.enable_caching()`, with a cache that cannot fail."""
    try:
        from finemoe.kernel_cache import KernelCache

        dispatcher._cache = KernelCache(dispatcher.py_func)
    except Exception as error:  # no source file, a setting that names a missing folder, or an incompatible Numba
        warn_uncached(error)


@contextmanager
def failures_raised(title: str, threads: Set[int] = frozenset()) -> Iterator[None]:
    """Raise, on exit, what a function called by address from compiled code has raised: exceptions cannot pass that code.

    Args:
        title: name of the function in the error message.
        threads: identifiers (`threading.get_ident`) of other threads that call it meanwhile; more may be added during the block.
    Raises:
        FinemoeError: the function failed; results computed in the block are invalid.
    """
    failures: list[BaseException | None] = []
    with _reporting:
        before, thread = sys.unraisablehook, threading.get_ident()

        def note(report: Any) -> None:
            if threading.get_ident() not in {thread, *threads}:
                before(report)
            elif not failures:  # keep the first of possibly many
                failures.append(report.exc_value)

        sys.unraisablehook = note
        try:
            yield
        finally:
            sys.unraisablehook = before
    if failures:
        raise FinemoeError(f"{title} failed: {type(failures[0]).__name__}: {failures[0]}") from failures[0]


def pointer(function: Any, *examples: Any) -> Any:
    """A compiled function as an argument that other compiled code calls, without being recompiled for each function.

    Args:
        function: a compiled function that returns nothing.
        examples: values of the types that it will be called with.
    Returns:
        The pointer, or the function itself if nothing is compiled.
    """
    if not hasattr(function, "get_compile_result"):
        return function
    from finemoe.kernel_pointer import KernelPointer

    return KernelPointer(function, examples)
