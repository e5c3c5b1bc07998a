#!/usr/bin/env bash
# Numba 0.68.1 (NumPy 2.4.6, CPython 3.11): whether an exception in a function that is passed to a jitted one under a declared FunctionType
# reaches the caller depends on how the function is passed. As a jitted function it raises. As a cfunc, or as an object that provides its
# address (WrapperAddressProtocol), it does not: the exception goes to sys.unraisablehook, which prints it, and the caller continues as if the
# call had returned, with whatever was written so far. A division by zero in a loop leaves the rest of the array unchanged, and the result is
# wrong with exit status 0.
# finemoe's replays call eviction rules by address; they catch what is reported there and refuse the replay (finemoe.compiling.failures_raised).
# Needs python3 3.11-3.13 and a package index. Fails if the behaviour is not as described.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -q --disable-pip-version-check numba==0.68.1 numpy==2.4.6
cat >"$folder/run.py" <<'PY'
import sys

import numba
import numpy as np
from numba import types

VALUES = types.float64[::1]
FILL = types.void(VALUES, VALUES)


def fill_with_reciprocals(values, filled):
    for place in range(len(values)):
        filled[place] = 1.0 / values[place]


class Address(types.WrapperAddressProtocol):
    def __wrapper_address__(self):
        return as_cfunc.address

    def signature(self):
        return FILL


as_jitted, as_cfunc = numba.njit(FILL)(fill_with_reciprocals), numba.cfunc(FILL)(fill_with_reciprocals)


@numba.njit(types.float64(types.FunctionType(FILL), VALUES, VALUES))
def summed(fill, values, filled):
    fill(values, filled)
    return filled.sum()


def outcome(call):
    try:
        return f"returns {call()}"
    except ZeroDivisionError:
        return "raises ZeroDivisionError"


HANDED = {"jitted": as_jitted, "cfunc": as_cfunc, "address": Address()}
reported = []
sys.unraisablehook = lambda report: reported.append(type(report.exc_value).__name__)
values = np.array([4.0, 0.0, 2.0])
found = {name: outcome(lambda: summed(fill, values, np.zeros(3))) for name, fill in HANDED.items()}
print(f"{found}, reported aside: {reported}")
expected = {"jitted": "raises ZeroDivisionError", "cfunc": "returns 0.25", "address": "returns 0.25"}
sys.exit(0 if (found, reported) == (expected, ["ZeroDivisionError"] * 2) else 1)
PY
"$folder/env/bin/python" "$folder/run.py" || { echo "not as said above" && exit 1; }
