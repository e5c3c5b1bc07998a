#!/usr/bin/env bash
# Numba 0.68.1 (NumPy 2.4.6, CPython 3.11): a jitted function that is passed to another one is a separate type, determined by its identity. A
# function with cache=True that takes such an argument is therefore compiled again in every process, although it counts as cached: nothing is
# ever found on disk, and every run adds another entry there, without limit. If the caller's signature names a FunctionType instead, the
# second process finds what the first compiled. But then each call from Python turns the function into a pointer, which takes about 100
# microseconds: 119 to 135 times as long as calling the function itself (measured; this script asks for more than 5 times).
# finemoe's eviction rules are such functions: its replays take them by an address that is looked up once (finemoe/kernel_pointer.py), and its
# live cache calls them from Python directly (finemoe/cache/expert_cache.py).
# Needs python3 3.11-3.13 and a package index. Fails if the behaviour is not as described.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -q --disable-pip-version-check numba==0.68.1 numpy==2.4.6
cat >"$folder/rules.py" <<'PY'
import numba
import numpy as np
from numba import types

VALUES = types.float64[::1]
WEIGH = types.float64(VALUES)


@numba.njit(WEIGH, cache=True)
def largest(values):
    return values.max()


@numba.njit(cache=True)
def by_identity(weigh, values):
    return weigh(values)


@numba.njit(types.float64(types.FunctionType(WEIGH), VALUES), cache=True)
def by_signature(weigh, values):
    return weigh(values)
PY
cat >"$folder/run.py" <<'PY'
import pathlib
import time

import numpy as np
import rules

values = np.arange(3.0)
assert rules.by_identity(rules.largest, values) == rules.by_signature(rules.largest, values) == 2.0


def seconds(call, count=2000):
    call()
    begin_s = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - begin_s


ratio = seconds(lambda: rules.by_signature(rules.largest, values)) / seconds(lambda: rules.largest(values))
kept = len(list(pathlib.Path(rules.__file__).parent.glob("__pycache__/rules.by_identity-*.nbc")))
hits = sum(rules.by_identity.stats.cache_hits.values()), sum(rules.by_signature.stats.cache_hits.values())
print(f"by identity: {hits[0]} found on disk, {kept} kept there; by signature: {hits[1]} found; a call costs {ratio:.0f} times as much")
assert hits[0] == 0, "found by identity"
assert ratio > 5, "as fast as any call"
PY
cd "$folder"
for run in 1 2 3; do env/bin/python run.py | tee "run$run"; done
grep -q ", 1 kept there; by signature: 0 found" run1 && grep -q ", 3 kept there; by signature: 1 found" run3 || { echo "not as said above" && exit 1; }
