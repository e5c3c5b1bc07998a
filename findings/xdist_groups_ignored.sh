#!/usr/bin/env bash
# pytest-xdist 3.8.0 with pytest 9.2.0: `--dist loadgroup` no longer keeps the tests of one `xdist_group` on one worker, without a warning.
# xdist passes a test's group to the scheduler by rewriting the item's private `_nodeid`, which pytest 9.2 no longer reads; with pytest 9.0.2,
# the same file keeps its group. A resource that the tests of a group share (a module's fixture that takes minutes, a port) is then created
# once per worker. finemoe's `make test` lets idle workers steal, which needs no group.
# Needs Python 3.10 or newer. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/test_group.py" <<'PY'
import os

import pytest

pytestmark = pytest.mark.xdist_group("together")


@pytest.mark.parametrize("number", range(8))
def test_which_worker(number):
    with open(os.environ["SEEN"], "a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\n")
PY
"${PYTHON:-python3}" -m venv "$folder/venv"
workers() { # of the group's tests, with this version of pytest
    "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "pytest==$1" pytest-xdist==3.8.0
    rm -f "$folder/seen"
    (cd "$folder" && SEEN="$folder/seen" venv/bin/python -m pytest -q -p no:cacheprovider -n 2 --dist loadgroup test_group.py >/dev/null)
    sort -u "$folder/seen" | wc -l
}
old=$(workers 9.0.2) new=$(workers 9.2.0)
echo "pytest-xdist 3.8.0, workers that ran one group's tests: pytest 9.0.2: $old, pytest 9.2.0: $new"
[[ $old == 1 && $new == 2 ]] || { echo "changed; it was 1 and 2" && exit 1; }
