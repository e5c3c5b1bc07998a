"""Compiled kernels that are older than the sources they were made of.

Numba keeps machine code beside a file and forgets it when that file changes, but not when a file changes whose functions it took
in: after an update old kernels would go on running.
"""

from pathlib import Path


def forget_stale_kernels(file: str, *sources: str | None) -> None:
    """Remove the kernels compiled from a file if one of the sources it takes functions from is younger.

    Args:
        file: of the module that holds the kernels. sources: files (`__file__`) of the modules whose functions they call.
    """
    youngest = max(Path(source).stat().st_mtime for source in sources if source is not None)
    for index in (Path(file).parent / "__pycache__").glob(f"{Path(file).stem}.*.nbi"):
        try:
            if index.stat().st_mtime < youngest:
                index.unlink()
        except OSError:  # another process was faster, or the folder is not ours: Numba then keeps its kernels elsewhere
            continue
