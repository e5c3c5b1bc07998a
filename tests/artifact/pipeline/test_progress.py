"""What the console shows while the pipeline runs, from records as Snakemake's logger makes them."""

import logging
from types import SimpleNamespace

import pytest

from finemoe.artifact.pipeline.progress import Progress, duration, read_expected
from finemoe.artifact.pipeline.table import read_table


def record(event: str, **fields):
    made = logging.LogRecord("snakemake", logging.INFO, "", 0, event, None, None)
    made.__dict__.update(event=event, **fields)
    return made


def started(jobid: int, rule: str, threads: int = 1, **wildcards: str):
    return record("job_info", jobid=jobid, rule_name=rule, threads=threads, wildcards=wildcards)


@pytest.fixture
def console():
    lines, clock = [], SimpleNamespace(now=0.0)
    jobs = [("profile", 1), ("profile", 1), ("timed", 2)]
    progress = Progress(jobs, 2, "quiet", {"profile": 10.0, "timed": 20.0}, lines.append, lambda: clock.now)
    return SimpleNamespace(lines=lines, clock=clock, tell=progress.filter)


def test_running_jobs_and_the_time_left_are_named(console):
    """Weights: two jobs of 10 s on one of two cores, one of 20 s on both: 5 + 5 + 20."""
    console.tell(started(1, "profile", model="phi", dataset="questions"))
    console.tell(started(2, "profile", model="qwen", dataset="questions"))
    console.clock.now = 20.0
    console.tell(record("job_finished", job_id=1))
    assert console.lines == [
        "  start profile phi-questions",
        "  start profile qwen-questions",
        f"[1/3] profile phi-questions: 20 s; about {duration(20 * 25 / 5)} left; still running: profile qwen-questions",
    ]
    console.clock.now = 21.0
    console.tell(record("job_finished", job_id=2))
    assert console.lines[-1] == f"[2/3] profile qwen-questions: 21 s; about {duration(21 * 20 / 10)} left"
    console.tell(started(3, "timed", threads=2))
    console.clock.now = 70.0
    console.tell(record("job_finished", job_id=3))
    assert console.lines[-1] == "[3/3] timed: 49 s; all done in 1 min 10 s"


def test_a_failure_names_its_logs(console):
    console.tell(started(1, "profile", model="phi"))
    console.tell(record("job_error", jobid=1, rule_name="profile", log=["results/logs/profile.txt"]))
    assert console.lines[-1] == "FAILED profile phi; see results/logs/profile.txt"


def test_every_record_passes_and_only_repeated_ones_are_quiet(console):
    ended, error = record("job_finished", job_id=9), record("job_error", jobid=9, rule_name="f4", log=[])
    assert console.tell(ended)
    assert console.tell(error)
    assert ended.quietness == "quiet"
    assert not hasattr(error, "quietness")


def test_the_target_itself_is_no_job(console):
    console.tell(started(0, "all"))
    assert console.lines == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_expected_times_are_means_over_a_rules_jobs(tmp_path):
    (tmp_path / "costs.csv").write_text("rule,jobs,cpu_s,wall_s\nf4,1,3,4\nprofile,2,25,30\n")
    assert read_expected(tmp_path / "costs.csv") == {"f4": 4.0, "profile": 15.0}
    assert read_expected(tmp_path / "absent.csv") == {}


def test_every_notebook_has_an_expected_time():
    """But those added after the last run that was shipped."""
    assert set(read_expected()) <= set(read_table())
    assert len(read_expected()) > 30
