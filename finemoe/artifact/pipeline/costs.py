"""The cost of a rule: wall time, processor time and memory of its process and of the child processes it waited for.

Snakemake's own benchmarks sample only the processes below a rule's shell. A notebook that a warm process runs (`warm_parent`) is
not among them.
"""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BYTES = 1 if sys.platform == "darwin" else 1024  # unit of `ru_maxrss`
_WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


@contextmanager
def costs_written(path: Path | None) -> Iterator[None]:
    """Write this process's cost as a one-row table: wall_s of the block, and, since the process started, cpu_s (user and system)
    and max_rss_mb (of the largest process). Writes nothing if `path` is None or the block fails."""
    begun = time.monotonic()
    yield
    if path is not None:
        from finemoe.files import atomic_path

        used = [resource.getrusage(who) for who in _WHO]
        cpu_s = sum(one.ru_utime + one.ru_stime for one in used)
        max_rss_mb = max(one.ru_maxrss for one in used) * _BYTES / 1e6
        with atomic_path(path) as temporary:
            row = f"{time.monotonic() - begun:.2f}\t{cpu_s:.2f}\t{max_rss_mb:.1f}"
            temporary.write_text(f"wall_s\tcpu_s\tmax_rss_mb\n{row}\n", encoding="utf-8")
