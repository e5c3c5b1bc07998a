"""What a rule cost: wall time, processor time and memory of its process and of those it has waited for.

Snakemake's own benchmarks see only the processes below a rule's shell, now and then; a notebook that a warm process runs
(`warm_parent`) is none of them.
"""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BYTES = 1 if sys.platform == "darwin" else 1024  # that `ru_maxrss` counts in
_WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


@contextmanager
def costs_written(path: Path | None) -> Iterator[None]:
    """Write what this process costs to a table of one row: wall_s from here to the end, and since it began cpu_s (user and
    system) and max_rss_mb (of the largest process); nothing for None, or where something fails."""
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
