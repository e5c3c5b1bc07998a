"""The warning for compiled kernels that cannot be kept for later processes."""

import warnings

_has_warned = False


def warn_uncached(error: Exception) -> None:
    """Warn once per process, in one line, that kernels are recompiled in every process, why, and what to do about it."""
    global _has_warned
    if not _has_warned:
        _has_warned = True
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        message = (
            f"compiled kernels cannot be kept ({reason}): every process compiles them again, which takes seconds and does not "
            "change results; set NUMBA_CACHE_DIR to a writable folder"
        )
        warnings.warn_explicit(message, RuntimeWarning, "finemoe", 1)  # without a source line, which would be printed too
