"""Remove compiled kernels that are older than their sources.

Numba stores machine code next to a source file and discards it when that file changes, but not when another file changes whose
functions it inlined: after an update, outdated kernels would keep running.
"""

from pathlib import Path


def forget_stale_kernels(file: str, *sources: str | None) -> None:
    """Remove the kernels compiled from a file if a source that they take functions from is newer.

    Args:
        file: path (`__file__`) of the module that holds the kernels.
        sources: paths (`__file__`) of the modules whose functions they call.
    """
    youngest = max(Path(source).stat().st_mtime for source in sources if source is not None)
    for index in (Path(file).parent / "__pycache__").glob(f"{Path(file).stem}.*.nbi"):
        try:
            if index.stat().st_mtime < youngest:
                index.unlink()
        except OSError:  # another process removed it first, or the folder is read-only and Numba keeps kernels elsewhere
            continue
