"""`python -m tests.benchmarks.against REV`: this checkout beside another revision, as fast and as large as it says."""

import argparse
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from finemoe.paths import ROOT
from finemoe.workloads import read_prompts

from .catalogue import Material, subjects
from .remote import Worker
from .report import line_of, write
from .rounds import measurements
from .subject import NEW, OLD, Measurement
from .tree import Tree, checked_out
from .verdicts import findings

BUILD = ROOT / "build" / "against"
_NUM_REQUESTS, _NUM_SERVED = 140, 3


def main() -> None:
    """Measure, print and write."""
    told = _parser().parse_args()
    found = subjects(_material())
    chosen = [one for one in found if not told.only or any(text in one.name for text in told.only)]
    if told.list:
        print(*(one.name for one in chosen), sep="\n")
        return
    old = Tree(told.tree) if told.tree else checked_out(told.revision, ROOT, BUILD / "trees")
    heading = f"new: {ROOT}, old: {old.folder}"
    measured: list[Measurement] = []
    with ExitStack() as stack:
        trees = {NEW: Tree(ROOT, Path(sys.executable)), OLD: old}
        workers = {name: stack.enter_context(Worker(tree, told.nice)) for name, tree in trees.items()}
        for subject in chosen:
            begin_s = time.perf_counter()
            rounds = list(measurements(subject, workers, told.rounds or subject.num_rounds))
            measured += rounds
            print(f"# {subject.name}: {time.perf_counter() - begin_s:.0f} s", flush=True)
            print(*(line_of(one) for one in findings([subject], rounds) if one.subject == subject.name), sep="\n", flush=True)
            write(told.out, findings(chosen, measured), measured, heading)
    names = {one.name for one in chosen}
    print(*(line_of(one) for one in findings(chosen, measured) if one.subject not in names), sep="\n")  # means over subjects
    print("\n".join((told.out / "summary.txt").read_text(encoding="utf-8").splitlines()[-1:]), f"(more in {told.out})")


def _material() -> Material:
    rows = [(row["prompt"], row["split"]) for row in read_prompts("questions", limit=_NUM_REQUESTS)]
    served = [text for text, split in rows if split == "served"][:_NUM_SERVED]
    return Material(served, [(text, split) for text, split in rows if text not in served], BUILD / "history")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.against", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("revision", nargs="?", help="the other revision, which is checked out and installed under build/against")
    which.add_argument("--tree", type=Path, help="the other checkout, where there is one with its environment in .venv")
    which.add_argument("--list", action="store_true", help="name the subjects and measure none")
    parser.add_argument("--only", action="append", help="subjects whose name contains this text; may be given several times")
    parser.add_argument("--rounds", type=int, help="rounds of every subject, instead of each one's own number")
    parser.add_argument("--nice", type=int, default=0, help="niceness of what measures; below 0 (as root) on a busy machine")
    parser.add_argument("--out", type=Path, default=BUILD / "results", help="where tables are written")
    return parser


if __name__ == "__main__":
    main()
