"""Nothing takes longer than it may, and what cannot be interrupted ends with its process."""

import subprocess
import sys
import time

import pytest

from finemoe.artifact.gpu_bench.alarm import Alarm, NearDeadline, OutOfTime


def test_a_block_that_takes_too_long_is_interrupted():
    with pytest.raises(OutOfTime, match="not done after 0 s") as raised, Alarm().limit(0.1):
        time.sleep(60)
    assert not isinstance(raised.value, NearDeadline)


def test_near_the_deadline_everything_is_interrupted():
    alarm = Alarm(5.0)
    try:
        with pytest.raises(NearDeadline), alarm.limit(3600):
            time.sleep(60)
        assert alarm.left_s > 0
    finally:
        alarm.off()


def test_the_age_of_a_process_begins_with_it():
    code = "import time; time.sleep(0.5); from finemoe.artifact.gpu_bench.alarm import age_s; print(age_s())"
    begin_s = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.5 <= float(done.stdout) <= time.monotonic() - begin_s + 0.02  # the system counts in hundredths


def test_a_part_has_less_than_is_left():
    alarm = Alarm(100.0)
    try:
        assert 80 < alarm.usable_s < alarm.left_s - 10
        assert Alarm().usable_s == float("inf")
    finally:
        alarm.off()


def test_a_block_in_time_is_left_alone():
    alarm = Alarm()
    with alarm.limit(0.2):
        pass
    time.sleep(0.4)
    assert alarm.left_s == float("inf")


DEAF = """
import signal, sys, time
from finemoe.artifact.gpu_bench import alarm
alarm._GRACE_S = alarm._LAST_S = 0.2
log = open(sys.argv[1], "w")
watch = alarm.Alarm(float(sys.argv[2]))
watch.write_to(log)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # as inside a call that never returns
print("begun", flush=True)
with watch.limit(float(sys.argv[3])):
    time.sleep(60)
print("never")
"""


@pytest.mark.parametrize(("deadline_s", "limit_s"), [(3600.0, 0.1), (1.5, 3600.0)])
def test_what_cannot_be_interrupted_is_written_down_and_ends_the_process(tmp_path, deadline_s, limit_s):
    log = tmp_path / "stacks.txt"
    command = [sys.executable, "-c", DEAF, str(log), str(deadline_s), str(limit_s)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == 1
    assert done.stdout == "begun\n"
    line = DEAF.splitlines().index("    time.sleep(60)") + 1
    assert f'File "<string>", line {line} in <module>' in log.read_text()
