"""The compiler of the inner loops: Numba's, or, where Numba cannot be imported, none, so that all that needs no speed still runs.

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
    with interrupts_wait():  # what an interrupt leaves of Numba half imported cannot be imported again
        numba = importlib.import_module("numba")
except Exception as error:  # a NumPy newer than it knows is refused, or fails, in ways of its own
    warnings.warn(
        f"Numba cannot be imported ({type(error).__name__}: {error}): searches, predictors and replays run uncompiled, with the "
        "same results but hundreds of times slower, and times measured of them mean nothing; install a Numba for this NumPy",
        RuntimeWarning,
        stacklevel=2,
    )
IS_COMPILED = numba is not None and not numba.config.DISABLE_JIT
_reporting = threading.Lock()  # of who asks what cannot be raised


def njit(function: Callable[..., Any] | None = None, *, cache: bool = False, **options: Any) -> Any:
    """As `numba.njit`, with or without options; without Numba, the function as it is.

    Args:
        cache: keep what is compiled for later processes, wherever Numba finds a folder for it; where it finds none, or cannot
            use what it finds, the function is compiled all the same.
    """
    if function is None:
        return functools.partial(njit, cache=cache, **options)
    if not IS_COMPILED:
        return function
    compiled = numba.njit(**options)(function)
    if cache and compiled is not function:  # which it is where Numba is told not to compile, by NUMBA_DISABLE_JIT
        _keep(compiled)
    return compiled


# For functions that only index arrays which their callers own: Numba's counting of references took 60 % of a replay's time. What
# such a function makes of an array (a row, a view) it may only hand to functions of its own kind.
borrowing = functools.partial(njit, cache=True, _nrt=False, forceinline=True)


def _keep(dispatcher: Any) -> None:
    """What `dispatcher.enable_caching()` does, with a cache that cannot fail."""
    try:
        from finemoe.kernel_cache import KernelCache

        dispatcher._cache = KernelCache(dispatcher.py_func)
    except Exception as error:  # no source file, a setting that names no place there is, or a Numba that caches otherwise
        warn_uncached(error)


@contextmanager
def failures_raised(title: str, threads: Set[int] = frozenset()) -> Iterator[None]:
    """Raise, at the end, what a function that compiled code called by address has raised: it cannot pass that code.

    Args:
        title: what the message calls the function. threads: others than this one (`threading.get_ident`) that call it meanwhile;
            they may join while this runs.
    Raises:
        FinemoeError: it failed; what was computed meanwhile means nothing.
    """
    failures: list[BaseException | None] = []
    with _reporting:
        before, thread = sys.unraisablehook, threading.get_ident()

        def note(report: Any) -> None:
            if threading.get_ident() not in {thread, *threads}:
                before(report)
            elif not failures:  # of which there may be many
                failures.append(report.exc_value)

        sys.unraisablehook = note
        try:
            yield
        finally:
            sys.unraisablehook = before
    if failures:
        raise FinemoeError(f"{title} failed: {type(failures[0]).__name__}: {failures[0]}") from failures[0]


def pointer(function: Any, *examples: Any) -> Any:
    """A compiled function as a value that compiled code takes as an argument and calls, without being compiled for it anew.

    Args:
        examples: values of the types that it will be called with; it returns nothing.
    Returns:
        The function itself where nothing is compiled.
    """
    if not hasattr(function, "get_compile_result"):
        return function
    from finemoe.kernel_pointer import KernelPointer

    return KernelPointer(function, examples)
