"""Which part of what is too much for every run belongs to this one: the commit decides, so that what fails once fails again."""

import subprocess
from pathlib import Path

from finemoe.paths import ROOT

NUM_PARTS = 4  # of the model families


def commit(root: Path = ROOT) -> str:
    """The commit that is checked out in `root`, in hexadecimal digits; "" where there is none, as in an unpacked archive."""
    if not (root / ".git").exists():  # an archive may lie in a repository of something else
        return ""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True)
    except OSError:  # no git on this machine
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def part(num_parts: int, root: Path = ROOT) -> int:
    """A part of 0..num_parts-1, the same for the same commit; the first where there is no commit."""
    return int(commit(root) or "0", 16) % num_parts
