"""Orders compute on a CUDA device across streams."""

import torch


class ComputeStream:
    """The stream that computed the last layer. The use of slots is ordered by it: a new stream waits for the previous one."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def follow(self, device: torch.device) -> None:
        """Announce that a layer is about to be computed on a CUDA device's current stream."""
        stream = torch.cuda.current_stream(device)
        if self._stream is not None and stream != self._stream:
            stream.wait_stream(self._stream)
        self._stream = stream
