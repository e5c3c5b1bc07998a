"""`python -m tests.benchmarks.against REV`: this checkout beside another revision; `--help` says more."""

import argparse
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from finemoe.paths import ROOT
from finemoe.workloads import read_prompts

from .catalogue import subjects
from .report import line_of, write
from .rounds import measurements
from .subject import NEW, OLD
from .tree import Tree, Worker
from .verdicts import findings


def main() -> None:
    """Measure, print and write."""
    told = _parser().parse_args()
    prompts = [row["prompt"] for row in read_prompts("questions", limit=20) if row["split"] == "served"]
    chosen = [one for one in subjects(prompts) if not told.only or any(text in one.name for text in told.only)]
    trees = {NEW: Tree(ROOT, Path(sys.executable)), OLD: Tree(told.tree)}
    measured = []
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(tree)) for name, tree in trees.items()}
        for subject in chosen:
            begin_s = time.perf_counter()
            rounds = list(measurements(subject, workers, told.rounds or subject.num_rounds))
            measured += rounds
            print(f"# {subject.name}: {time.perf_counter() - begin_s:.0f} s", flush=True)
            print(*map(line_of, findings([subject], rounds)), sep="\n", flush=True)
    found = findings(chosen, measured)
    write(told.out, found, measured, f"{ROOT} against {trees[OLD].folder}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.against", description=__doc__)
    parser.add_argument("--tree", type=Path, required=True, help="the other checkout, with its environment in .venv")
    parser.add_argument("--only", action="append", help="subjects whose name contains this text; may be given several times")
    parser.add_argument("--rounds", type=int, help="rounds of every subject, instead of each one's own number")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "against" / "results", help="where tables are written")
    return parser


if __name__ == "__main__":
    main()
