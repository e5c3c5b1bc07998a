"""What a fresh process takes that imports finemoe and replays a trace."""

import json
import os
import subprocess
import sys
from typing import Any

from .history import recorded

_PROGRAM = """
import json, re, sys, time
begin_s = time.perf_counter()
import finemoe
finemoe.replay, finemoe.RoutingTrace
import_s = time.perf_counter() - begin_s
path, policy, is_mapped = json.loads(sys.argv[1])
report = finemoe.replay(finemoe.RoutingTrace.load(path, mapped=is_mapped), policy, 0.25)
# not ru_maxrss, which begins with the peak of the process that started this one
peak = int(re.search("VmHWM:\\\\s*(\\\\d+)", open("/proc/self/status").read()).group(1)) * 1024
counts = [list(report.layer_hits), list(report.layer_late), list(report.layer_misses), report.prefetched_bytes]
print(json.dumps([peak, import_s, time.perf_counter() - begin_s, counts]))
"""


class Measured:
    """Variants "POLICY" (the trace stays in its file, as for `finemoe replay`) and "POLICY loaded" (it is read into memory).

    Its counts stand in for tokens: they are to be the same in both trees.

    Args:
        history: arguments of `recorded`; variants: those to be measured.
    """

    def __init__(self, history: dict[str, Any], variants: list[str]) -> None:
        recorded(**history)
        self._path = history["path"]
        self.expected = {variant: self._run(variant)[-1] for variant in variants}  # which also compiles

    def measure(self, variant: str) -> dict[str, Any]:
        """Peak of the resident set in bytes, seconds of the import, and of the whole."""
        peak, import_s, whole_s, counts = self._run(variant)
        assert counts == self.expected[variant], f"{variant}: another run counted otherwise"
        values = {f"{variant}, peak": peak, f"{variant}, import": import_s, f"{variant}, whole": whole_s}
        return {"values": values, "tokens": None}

    def _run(self, variant: str) -> Any:
        policy, _, is_loaded = variant.partition(" ")
        argument = json.dumps([self._path, policy, not is_loaded])
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, argument], stdout=subprocess.PIPE, text=True, check=True, env=os.environ
        )
        return json.loads(done.stdout)

    def close(self) -> None:
        """Its processes have ended."""
