"""`finemoe.native` compiled by Numba."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, typeof, types
from numba.core import cgutils
from numba.extending import intrinsic

from finemoe.compiling import njit

_CLOCK_MONOTONIC, _ABSOLUTE = 1, 1
_SET_TIMER_SLACK, _GET_TIMER_SLACK = 29, 30  # options of prctl
_NS = 1_000_000_000

_mutex_lock: Any = types.ExternalFunction("pthread_mutex_lock", types.int32(types.voidptr))
_mutex_unlock: Any = types.ExternalFunction("pthread_mutex_unlock", types.int32(types.voidptr))
_broadcast: Any = types.ExternalFunction("pthread_cond_broadcast", types.int32(types.voidptr))
_wait: Any = types.ExternalFunction("pthread_cond_wait", types.int32(types.voidptr, types.voidptr))
_timedwait: Any = types.ExternalFunction("pthread_cond_timedwait", types.int32(types.voidptr, types.voidptr, types.voidptr))
_gettime: Any = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.voidptr))
_nanosleep: Any = types.ExternalFunction("clock_nanosleep", types.int32(types.int32, types.int32, types.voidptr, types.voidptr))
_memcpy: Any = types.ExternalFunction("memcpy", types.voidptr(types.voidptr, types.voidptr, types.uint64))
_prctl: Any = types.ExternalFunction("prctl", types.int32(types.int32, types.int64, types.int64, types.int64, types.int64))


@intrinsic
def _as_pointer(typingctx: Any, address: Any) -> Any:
    """An address as a pointer for the C library."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


_pointer: Any = _as_pointer


def function_types(returns: Any, *examples: Any) -> tuple[Any, Any]:
    """Two intrinsics that turn an address into a function: one compiled by Numba, whose exceptions reach the caller, and one as
    seen by C.

    Args:
        returns: an example of the return value, or None.
        examples: examples of the arguments.
    """
    kind = types.FunctionType((types.void if returns is None else typeof(returns))(*map(typeof, examples)))

    def at(member: str) -> Any:
        @intrinsic
        def function_at(typingctx: Any, address: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                function = cgutils.create_struct_proxy(signature.return_type)(context, builder)
                setattr(function, member, builder.inttoptr(arguments[0], cgutils.voidptr_t))
                return function._getvalue()

            return kind(types.int64), generate

        return function_at

    return at("jit_addr"), at("c_addr")


def function_addresses(function: Any, *examples: Any) -> tuple[int, int]:
    """The two addresses of a compiled function, as Numba and as C call it; they are valid while the function is alive.

    Args:
        function: a function made by `finemoe.compiling.njit`.
        examples: values of the argument types.
    """
    signature = tuple(map(typeof, examples))
    function.compile(signature)
    compiled = function.overloads[signature]
    names = compiled.fndesc.llvm_func_name, compiled.fndesc.llvm_cfunc_wrapper_name
    return tuple(int(compiled.library.get_pointer_to_function(name)) for name in names)  # type: ignore[return-value]


transition: Callable[[Callable[..., Any]], Callable[..., Any]] = functools.partial(njit, cache=True, nogil=True)


@njit(cache=True)
def int64_at(address, length):  # type: ignore[no-untyped-def]
    return carray(_pointer(address), (length,), np.int64)


@njit(cache=True)
def float64_at(address, length):  # type: ignore[no-untyped-def]
    return carray(_pointer(address), (length,), np.float64)


@njit(cache=True)
def float32_at(address, length):  # type: ignore[no-untyped-def]
    return carray(_pointer(address), (length,), np.float32)


@njit(cache=True)
def uint16_at(address, length):  # type: ignore[no-untyped-def]
    return carray(_pointer(address), (length,), np.uint16)


@njit(cache=True)
def uint8_at(address, length):  # type: ignore[no-untyped-def]
    return carray(_pointer(address), (length,), np.uint8)


@njit(cache=True)
def bool_at(address, length):  # type: ignore[no-untyped-def]
    return carray(_pointer(address), (length,), np.bool_)


@njit(cache=True)
def lock(mutex):  # type: ignore[no-untyped-def]
    _mutex_lock(_pointer(mutex))


@njit(cache=True)
def unlock(mutex):  # type: ignore[no-untyped-def]
    _mutex_unlock(_pointer(mutex))


@njit(cache=True)
def wake_all(condition):  # type: ignore[no-untyped-def]
    _broadcast(_pointer(condition))


@njit(cache=True)
def wait(condition, mutex):  # type: ignore[no-untyped-def]
    _wait(_pointer(condition), _pointer(mutex))


@njit(cache=True)
def wait_until(condition, mutex, end_ns):  # type: ignore[no-untyped-def]
    end = np.array([end_ns // _NS, end_ns % _NS])
    _timedwait(_pointer(condition), _pointer(mutex), _pointer(end.ctypes.data))


@njit(cache=True)
def now_ns():  # type: ignore[no-untyped-def]
    now = np.empty(2, dtype=np.int64)
    _gettime(_CLOCK_MONOTONIC, _pointer(now.ctypes.data))
    return now[0] * _NS + now[1]


@njit(cache=True)
def sleep_until(end_ns):  # type: ignore[no-untyped-def]
    end = np.array([end_ns // _NS, end_ns % _NS])
    _nanosleep(_CLOCK_MONOTONIC, _ABSOLUTE, _pointer(end.ctypes.data), _pointer(0))


@njit(cache=True)
def set_timer_slack(slack_ns):  # type: ignore[no-untyped-def]
    before = _prctl(_GET_TIMER_SLACK, 0, 0, 0, 0)
    _prctl(_SET_TIMER_SLACK, slack_ns, 0, 0, 0)
    return np.int64(before)


@njit(cache=True)
def copy_bytes(sink, source, size):  # type: ignore[no-untyped-def]
    _memcpy(_pointer(sink), _pointer(source), np.uint64(size))
