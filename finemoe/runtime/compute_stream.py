"""The order of compute on a CUDA device across streams."""

import torch


class ComputeStream:
    """The stream on which the last layer was computed. Slots are ordered by it: one that takes over waits for the one before."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def follow(self, device: torch.device) -> None:
        """A layer is about to be computed on a CUDA device's current stream."""
        stream = torch.cuda.current_stream(device)
        if self._stream is not None and stream != self._stream:
            stream.wait_stream(self._stream)
        self._stream = stream
