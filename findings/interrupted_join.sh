#!/usr/bin/env bash
# CPython 3.11 and 3.12 (seen in 3.11.7 and 3.12.1; gone in 3.13.0): if a signal handler interrupts Thread.join() with an exception, the
# thread counts as ended. From then on is_alive() is False and every later join() returns at once, although the thread continues: memory that
# is freed after such a join is freed under a thread that still uses it. A time limit by SIGALRM is enough, as is Ctrl-C. finemoe's measurements
# wait for an event that the thread sets last instead (finemoe/artifact/gpu_bench/copies.py); tests/artifact/gpu_bench/test_copies.py found
# this.
# Needs only python3 (PYTHON names another interpreter). Fails if this interpreter's version does not behave as described.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/join.py" <<'PY'
import signal
import sys
import threading


class OutOfTime(Exception):
    pass


def ring(*_):
    raise OutOfTime


release = threading.Event()
thread = threading.Thread(target=release.wait)
thread.start()
signal.signal(signal.SIGALRM, ring)
signal.setitimer(signal.ITIMER_REAL, 0.2)
try:
    thread.join()
except OutOfTime:
    pass
is_running = thread.ident in sys._current_frames()
print(f"CPython {sys.version.split()[0]}: running {is_running}, is_alive() {thread.is_alive()}")
expected = sys.version_info >= (3, 13)
release.set()
sys.exit(0 if is_running and thread.is_alive() == expected else 1)
PY
timeout 60 "${PYTHON:-python3}" "$folder/join.py" || { echo "not as said above" && exit 1; }
