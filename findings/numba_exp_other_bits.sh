#!/usr/bin/env bash
# Numba 0.68.1 (NumPy 2.4.6, CPython 3.11, x86-64): for two of five float32 values, `np.exp` returns other bits in a compiled function than
# in Python: 39,546 of 100,000 values between -20 and 0. NumPy's results are not the more accurate ones: Numba's are correctly rounded (all
# but 65), while NumPy's vectorised exp is off by one or two units in the last place just as often. Rounded to half precision, one of the
# 100,000 still differs. A softmax that is compiled line by line is therefore another softmax, and comparisons with records that Python made,
# such as the nearest of many stored distributions, may decide differently.
# finemoe lets NumPy compute a gate's powers on both sides, and compiles what comes before and after (finemoe/runtime/gates.py).
# Needs python3 3.11-3.13 on x86-64 and a package index. Fails if the behaviour is not as described.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -q --disable-pip-version-check numba==0.68.1 numpy==2.4.6
cat >"$folder/run.py" <<'PY'
import numba
import numpy as np


@numba.njit
def compiled(values):
    return np.exp(values)


values = -20 * np.random.default_rng(0).random(100_000, dtype=np.float32)
ours, theirs = np.exp(values), compiled(values)
right = np.exp(values.astype(np.float64)).astype(np.float32)
differ = int((ours != theirs).sum())
apart = int(np.abs(ours.view(np.int32) - theirs.view(np.int32)).max())
print(f"of {len(values):,}: {differ:,} differ, by {apart} units in the last place at most; not rounded correctly are")
print(f"{int((ours != right).sum()):,} of NumPy's and {int((theirs != right).sum()):,} of Numba's")
print(f"{int((ours.astype(np.float16) != theirs.astype(np.float16)).sum())} differ at half precision")
assert ours.dtype == theirs.dtype == np.float32
assert differ > len(values) // 10
assert apart <= 2
assert (ours != right).sum() > len(values) // 10 > 100 > (theirs != right).sum()
PY
"$folder/env/bin/python" "$folder/run.py"
