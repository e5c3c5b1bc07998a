"""Compiled functions by address: a kernel calls whatever address it is given and is not recompiled for each function."""

from typing import Any

import numba
from numba import types


class KernelPointer(types.WrapperAddressProtocol):
    """A compiled function that returns nothing, for one list of argument types.

    Args:
        dispatcher: the function, as compiled by `finemoe.compiling.njit`.
        examples: values of the types that it is called with.
    """

    def __init__(self, dispatcher: Any, examples: tuple[Any, ...]) -> None:
        self._dispatcher = dispatcher  # keeps the machine code alive
        self._signature = types.void(*map(numba.typeof, examples))
        dispatcher.compile(self._signature.args)
        compiled = dispatcher.get_compile_result(self._signature)
        self._address = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_cfunc_wrapper_name)
        self._numba_type_ = types.FunctionType(self._signature)

    def __wrapper_address__(self) -> int:
        return int(self._address)

    def signature(self) -> Any:
        return self._signature
