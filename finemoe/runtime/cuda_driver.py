"""The functions of the CUDA driver that a link calls by address, so that copies do not need the interpreter (see `cuda_link`)."""

import ctypes
from dataclasses import dataclass

from finemoe.errors import EngineError

_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
_WITHOUT_TIMING = 2  # flag of events; these cost least


@dataclass(frozen=True)
class CudaDriver:
    """Addresses of the driver's functions.

    Attributes:
        push_context: cuCtxPushCurrent(context).
        pop_context: cuCtxPopCurrent(context*), back to the previous one.
        copy: cuMemcpyHtoDAsync(sink, source, bytes, stream).
        record: cuEventRecord(event, stream).
        synchronize: cuEventSynchronize(event).
        wait_event: cuStreamWaitEvent(stream, event, 0).
        create_event: cuEventCreate(event*, flags).
        destroy_event: cuEventDestroy(event).
        get_context: cuCtxGetCurrent(context*).
        finish: cuCtxSynchronize().
        describe: cuGetErrorString(error, text*).
    """

    push_context: int
    pop_context: int
    copy: int
    record: int
    synchronize: int
    wait_event: int
    create_event: int
    destroy_event: int
    get_context: int
    finish: int
    describe: int

    @classmethod
    def installed(cls) -> "CudaDriver":
        """The driver of this machine.

        Raises:
            EngineError: the driver's library cannot be loaded.
        """
        for name in _LIBRARIES:
            try:
                library = ctypes.CDLL(name)
            except OSError:
                continue
            return cls(*(_address(getattr(library, function)) for function in _FUNCTIONS))
        raise EngineError(
            "PyTorch reports a CUDA device, but the driver's library (libcuda.so.1) cannot be loaded; check its installation"
        )

    def event(self) -> int:
        """Create an event."""
        found = ctypes.c_void_p()
        self.check(_call(self.create_event, ctypes.byref(found), ctypes.c_uint(_WITHOUT_TIMING)))
        return found.value or 0

    def context(self) -> int:
        """The calling thread's context."""
        found = ctypes.c_void_p()
        self.check(_call(self.get_context, ctypes.byref(found)))
        return found.value or 0

    def destroy(self, event: int) -> None:
        """Destroy an event."""
        _call(self.destroy_event, ctypes.c_void_p(event))

    def synchronize_context(self, context: int) -> None:
        """Wait until all work on a context's device is over."""
        self.check(_call(self.push_context, ctypes.c_void_p(context)))
        error = _call(self.finish)
        self.check(_call(self.pop_context, ctypes.byref(ctypes.c_void_p())))
        self.check(error)

    def check(self, error: int) -> None:
        """Raise an EngineError with the meaning of an error number, unless it is 0."""
        if error:
            raise EngineError(self.text(error))

    def text(self, error: int) -> str:
        """The meaning of an error number."""
        found = ctypes.c_char_p()
        _call(self.describe, ctypes.c_int(error), ctypes.byref(found))
        return f"CUDA error {error}: {(found.value or b'unknown').decode(errors='replace')}"


_FUNCTIONS = (
    "cuCtxPushCurrent_v2",
    "cuCtxPopCurrent_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuStreamWaitEvent",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuCtxGetCurrent",
    "cuCtxSynchronize",
    "cuGetErrorString",
)


def _address(function: object) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]


def _call(address: int, *arguments: object) -> int:
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(address)(*arguments))
