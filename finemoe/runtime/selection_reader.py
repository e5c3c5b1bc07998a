"""Copies a layer's selected experts to the host while the device continues: one copy into page-locked memory, one event."""

from typing import Any

import numpy as np
import torch

from finemoe.runtime.snapshot import HostBuffers, Snapshot


class SelectionReader:
    """Reads one layer's selection. On CUDA the copy starts as soon as the router has run, so that work issued in between, such
    as a shared expert, hides it.

    Args:
        buffers: where copies from CUDA land; None without CUDA.
    """

    def __init__(self, buffers: HostBuffers | None) -> None:
        self._buffers = buffers
        self._begun: tuple[torch.Tensor, Snapshot] | None = None

    def begin(self, router_output: Any) -> None:
        """Start copying from the router's output, by convention (scores [T, J], weights [T, K], index [T, K], ...)."""
        if self._buffers is not None and isinstance(router_output, tuple):
            index = next((one for one in router_output if _is_index(one)), None)
            self._begun = None if index is None else (index, Snapshot(index, self._buffers))

    def read(self, top_k_index: torch.Tensor) -> np.ndarray:
        """The ids that the experts are called with, [T, K]; uses the started copy if it is of that tensor."""
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] is top_k_index:
            return begun[1].whole_numbers()
        selected: np.ndarray = (top_k_index if top_k_index.is_cpu else top_k_index.cpu()).numpy()
        return selected


def _is_index(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 2 and value.dtype == torch.int64
