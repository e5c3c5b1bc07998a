"""Console output while the pipeline runs: the running jobs, the progress, and an estimate of the time left.

Snakemake reports every event to its logger, but prints either all of a job's files or only a count. `Progress` watches the events
and prints one line for each job that starts, ends or fails, in place of Snakemake's own lines about these events.
"""

import csv
import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finemoe.paths import ROOT

# What each rule cost in a run, written by `make reference`.
EXPECTED = ROOT / "data" / "reference" / "docs" / "notebook_costs_measured.csv"
_UNKNOWN_S = 5.0  # assumed for a rule that is not in the table
_OWN_LINES = ("job_started", "job_finished", "progress")  # names of Snakemake's events


@dataclass
class _Job:
    name: str
    weight_s: float  # wall time scaled by the share of the cores
    begun_s: float


class Progress(logging.Filter):
    """A filter on Snakemake's logger that lets everything pass.

    Args:
        jobs: rule and number of threads of every job that will run.
        cores: number of cores of the whole run.
        quietness: the value that a record's `quietness` must have for Snakemake to keep it off the console.
        expected_s: wall time of one job, by rule; only ratios matter.
        print_line, clock: replaced in tests.
    """

    def __init__(
        self,
        jobs: list[tuple[str, int]],
        cores: int,
        quietness: Any = None,
        expected_s: Mapping[str, float] | None = None,
        print_line: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._expected_s = read_expected() if expected_s is None else expected_s
        self._cores, self._quietness, self._print, self._clock = cores, quietness, print_line, clock
        self._total = len(jobs)
        self._left_s = sum(self._weight(rule, threads) for rule, threads in jobs)
        self._begun_s, self._finished, self._done_s = clock(), 0, 0.0
        self._running: dict[int, _Job] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Print what the record reports; always True."""
        event = str(getattr(record, "event", ""))
        if event == "job_info":
            self._start(record)
        elif event == "job_finished":
            self._end(record.job_id)  # type: ignore[attr-defined]
        elif event == "job_error":
            self._fail(record)
        if event in _OWN_LINES or record.msg == "Select jobs to execute...":
            record.quietness = self._quietness
        return True

    def _start(self, record: Any) -> None:
        if record.rule_name == "all":
            return
        wildcards = "-".join(record.wildcards.values()) if record.wildcards else ""
        name = f"{record.rule_name} {wildcards}".strip()
        self._running[record.jobid] = _Job(name, self._weight(record.rule_name, record.threads), self._clock())
        self._print(f"  start {name}")

    def _end(self, job_id: int) -> None:
        job = self._running.pop(job_id, None)
        if job is None:
            return
        self._finished += 1
        self._done_s += job.weight_s
        self._left_s -= job.weight_s
        took = duration(self._clock() - job.begun_s)
        running = ", ".join(one.name for one in self._running.values())
        parts = [f"[{self._finished}/{self._total}] {job.name}: {took}", self._time_left()]
        self._print("; ".join([*parts, f"still running: {running}"] if running else parts))

    def _fail(self, record: Any) -> None:
        job = self._running.pop(record.jobid, None)
        logs = ", ".join(path for path in record.log if not path.endswith(".tsv"))  # costs
        self._print(f"FAILED {job.name if job else record.rule_name}" + (f"; see {logs}" if logs else ""))

    def _time_left(self) -> str:
        elapsed_s = self._clock() - self._begun_s
        if self._finished >= self._total:
            return f"all done in {duration(elapsed_s)}"
        return f"about {duration(elapsed_s * self._left_s / self._done_s)} left"

    def _weight(self, rule: str, threads: int) -> float:
        return self._expected_s.get(rule, _UNKNOWN_S) * min(threads, self._cores) / self._cores


def duration(seconds: float) -> str:
    """Seconds in words: `8 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def read_expected(path: Path = EXPECTED) -> dict[str, float]:
    """Mean wall time of one job of each rule, in seconds; empty without the table."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["rule"]: float(row["wall_s"]) / int(row["jobs"]) for row in csv.DictReader(file)}
