"""What is said where compiled kernels cannot be kept for later processes."""

import warnings

_has_warned = False


def warn_uncached(error: Exception) -> None:
    """Say, once in a process and in one line, that kernels are compiled anew in each, why, and what to do about it."""
    global _has_warned
    if not _has_warned:
        _has_warned = True
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        message = (
            f"compiled kernels cannot be kept ({reason}): every process compiles them anew, which takes seconds, with the same "
            "results; name a folder that can be written in NUMBA_CACHE_DIR"
        )
        warnings.warn_explicit(message, RuntimeWarning, "finemoe", 1)  # not of a line of source, which would be printed too
