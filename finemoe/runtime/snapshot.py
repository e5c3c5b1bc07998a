"""A tensor's values as they are now, for another thread to read later, without making the device or the caller wait."""

import numpy as np
import torch


class Snapshot:
    """Copied at once on the CPU (the model may overwrite its tensor); on CUDA a copy is queued behind the work that makes the
    values.

    Args:
        values: [..., n], of any floating-point type.
    """

    def __init__(self, values: torch.Tensor) -> None:
        flat = values.detach().reshape(-1, values.shape[-1])
        self._event: torch.cuda.Event | None = None
        if flat.is_cuda:
            self._host = torch.empty(flat.shape, dtype=flat.dtype, device="cpu", pin_memory=True)
            self._host.copy_(flat, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(flat.device))
        else:
            self._host = flat.clone()

    def rows(self, rows: np.ndarray | None) -> np.ndarray:
        """The values of some rows (all if None), [B, n] float32; waits for the copy."""
        if self._event is not None:
            self._event.synchronize()
        values: np.ndarray = self._host.float().numpy()
        return values if rows is None else values[rows]
