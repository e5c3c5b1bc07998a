"""The compiler of the inner loops: Numba's, or, where Numba cannot be imported, none, so that all that needs no speed still runs.

Loops are written to give the same results either way: where Numba computes in 64 bits, so does NumPy.
"""

import warnings
from collections.abc import Callable
from typing import Any


def uncompiled(function: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
    """Stands in for `numba.njit`, with or without options: the function as it is."""
    return uncompiled if function is None else function


njit: Any = uncompiled
try:
    from numba import njit
except Exception as error:  # a NumPy newer than it knows is refused, or fails, in ways of its own
    warnings.warn(
        f"Numba cannot be imported ({type(error).__name__}: {error}): searches, predictors and replays run uncompiled, with the "
        "same results but hundreds of times slower, and times measured of them mean nothing; install a Numba for this NumPy",
        RuntimeWarning,
        stacklevel=2,
    )
IS_COMPILED = njit is not uncompiled
