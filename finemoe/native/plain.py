"""`finemoe.native` without compilation: the same functions, but slow."""

import ctypes
import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from finemoe.interrupts import interrupts_wait

_SET_TIMER_SLACK, _GET_TIMER_SLACK = 29, 30  # options of prctl
_NS = 1_000_000_000
_LIBRARY = ctypes.CDLL(None)
_functions: dict[int, Any] = {}  # by the number that represents the address


def transition(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        with interrupts_wait():
            return function(*arguments)

    return run


class _Time(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("ns", ctypes.c_long))


def function_types(returns: Any, *examples: Any) -> tuple[Any, Any]:
    kinds = [ctypes.c_int64] * (1 + len(examples))

    def c_at(address: int) -> Any:
        found = _functions.get(int(address))
        return found if found is not None else ctypes.CFUNCTYPE(*kinds)(int(address))

    return _functions.__getitem__, c_at


def function_addresses(function: Any, *examples: Any) -> tuple[int, int]:
    _functions[id(function)] = function
    return id(function), id(function)


def _array_at(dtype: Any) -> Callable[[int, int], np.ndarray]:
    kind = np.dtype(dtype)

    def at(address: int, length: int) -> np.ndarray:
        if not length:
            return np.empty(0, dtype=kind)
        return np.frombuffer((ctypes.c_char * (int(length) * kind.itemsize)).from_address(int(address)), dtype=kind)

    return at


int64_at, float64_at, float32_at = _array_at(np.int64), _array_at(np.float64), _array_at(np.float32)
uint16_at, uint8_at, bool_at = _array_at(np.uint16), _array_at(np.uint8), _array_at(np.bool_)


def lock(mutex: int) -> None:
    _LIBRARY.pthread_mutex_lock(ctypes.c_void_p(int(mutex)))


def unlock(mutex: int) -> None:
    _LIBRARY.pthread_mutex_unlock(ctypes.c_void_p(int(mutex)))


def wake_all(condition: int) -> None:
    _LIBRARY.pthread_cond_broadcast(ctypes.c_void_p(int(condition)))


def wait(condition: int, mutex: int) -> None:
    _LIBRARY.pthread_cond_wait(ctypes.c_void_p(int(condition)), ctypes.c_void_p(int(mutex)))


def wait_until(condition: int, mutex: int, end_ns: int) -> None:
    end = _Time(*divmod(int(end_ns), _NS))
    _LIBRARY.pthread_cond_timedwait(ctypes.c_void_p(int(condition)), ctypes.c_void_p(int(mutex)), ctypes.byref(end))


def now_ns() -> int:
    return time.perf_counter_ns()


def sleep_until(end_ns: int) -> None:
    time.sleep(max(0, int(end_ns) - now_ns()) / _NS)


def set_timer_slack(slack_ns: int) -> int:
    before = _LIBRARY.prctl(_GET_TIMER_SLACK, 0, 0, 0, 0)
    _LIBRARY.prctl(_SET_TIMER_SLACK, ctypes.c_ulong(int(slack_ns)), 0, 0, 0)
    return int(before)


def copy_bytes(sink: int, source: int, size: int) -> None:
    ctypes.memmove(int(sink), int(source), int(size))
