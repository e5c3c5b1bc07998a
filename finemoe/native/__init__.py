"""Access to the process for compiled code, by address: arrays, functions, locks, the clock.

Calling compiled code from Python takes time for every array argument (a cache's 24 arrays take 5 us), while an address takes
0.2 us; and code that runs outside the interpreter's lock needs its own locks. Without Numba, the same names do the same slowly.

    int64_at(address, length) and others: the array at that address, which another object keeps alive.
    rule_at, c_at = function_types(...): the function at an address, as compiled by Numba, or as seen by C.
    lock, unlock(mutex); wait(condition, mutex), wait_until(condition, mutex, end_ns); wake_all(condition).
    now_ns(): time.perf_counter_ns. sleep_until(end_ns). set_timer_slack(ns): how late the system may wake this thread; returns
    the former value. copy_bytes(sink, source, size).
    transition(function): runs outside the interpreter's lock, and no interrupt strikes inside it.
"""

import ctypes
import sys

import numpy as np

from finemoe.compiling import IS_COMPILED

if IS_COMPILED:
    from finemoe.native import compiled
    from finemoe.native.compiled import (
        bool_at,
        copy_bytes,
        float32_at,
        float64_at,
        function_addresses,
        function_types,
        int64_at,
        lock,
        now_ns,
        set_timer_slack,
        sleep_until,
        transition,
        uint8_at,
        uint16_at,
        unlock,
        wait,
        wait_until,
        wake_all,
    )
else:
    from finemoe.native import plain as compiled  # type: ignore[no-redef]
    from finemoe.native.plain import (
        bool_at,
        copy_bytes,
        float32_at,
        float64_at,
        function_addresses,
        function_types,
        int64_at,
        lock,
        now_ns,
        set_timer_slack,
        sleep_until,
        transition,
        uint8_at,
        uint16_at,
        unlock,
        wait,
        wait_until,
        wake_all,
    )

__all__ = [
    "bool_at",
    "compiled",
    "copy_bytes",
    "float32_at",
    "float64_at",
    "function_addresses",
    "function_types",
    "int64_at",
    "lock",
    "new_condition",
    "new_mutex",
    "now_ns",
    "set_timer_slack",
    "sleep_until",
    "transition",
    "uint8_at",
    "uint16_at",
    "unlock",
    "wait",
    "wait_until",
    "wake_all",
]

_BYTES = 128  # upper bound of the size of the C library's mutexes, conditions and their attributes
_CLOCK_MONOTONIC = 1


def new_mutex() -> np.ndarray:
    """A mutex for `lock`, in its own memory, [n] int64: its address is `.ctypes.data`, valid while the array is alive."""
    memory = np.zeros(_BYTES // 8, dtype=np.int64)
    ctypes.CDLL(None).pthread_mutex_init(ctypes.c_void_p(memory.ctypes.data), None)
    return memory


def new_condition() -> np.ndarray:
    """A condition for `wait`, in the same form."""
    memory, attributes, library = np.zeros(_BYTES // 8, dtype=np.int64), (ctypes.c_char * _BYTES)(), ctypes.CDLL(None)
    library.pthread_condattr_init(attributes)
    if sys.platform == "linux":  # elsewhere `wait_until` may wait too long or too briefly; callers tolerate this
        library.pthread_condattr_setclock(attributes, _CLOCK_MONOTONIC)
    library.pthread_cond_init(ctypes.c_void_p(memory.ctypes.data), attributes)
    return memory
