"""Stores experts off the device: in an arena in host memory and, beyond the host's budget, in a file on disk (DESIGN 5, "Tiers").

The arena is page-locked if a CUDA device reads it (see `arena`). The file is unnamed, so nothing is left behind however the
process ends. Each record's checksum is computed when it is written and verified at every read, since a wrong weight means a wrong
token.
"""

import os
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
import xxhash

from finemoe.errors import EngineError, FinemoeError
from finemoe.runtime.arena import Arena
from finemoe.runtime.expert_layout import ExpertLayout

_READ_CHUNK_BYTES = 1 << 20
_NUM_READERS = 4
_FLUSH_BYTES = 64 << 20


class ExpertStore:
    """Holds all experts of a model outside the device.

    Args:
        layouts: the record layout of every MoE layer.
        counts: number of experts of every layer.
        host_bytes: budget of the arena; None keeps everything in host memory.
        pinned: page-lock the arena as far as the machine allows.
        disk_folder: folder of the disk tier's file; None is the system's folder for temporary files.
        is_sure: assume that the host has enough memory, whatever it reports; see Arena.
    Attributes:
        host_bytes, disk_bytes: total size of the experts in host memory and on disk.
        disk: the disk tier, if there is one.
    Raises:
        FinemoeError: the budget is negative, or memory or disk space is not available.
    """

    def __init__(
        self,
        layouts: Sequence[ExpertLayout],
        counts: Sequence[int],
        host_bytes: int | None = None,
        pinned: bool = False,
        disk_folder: str | Path | None = None,
        is_sure: bool = False,
    ) -> None:
        self.layouts, self.counts = list(layouts), list(counts)
        sizes = np.repeat([layout.nbytes for layout in layouts], counts)
        is_host = _striped(sizes, host_bytes)
        places = np.where(is_host, np.cumsum(is_host) - 1, np.cumsum(sizes * ~is_host) - sizes)
        self._first = np.concatenate([[0], np.cumsum(counts)]).tolist()
        self._sizes, self._is_host = sizes.tolist(), is_host.tolist()
        self._places = places.tolist()  # a record's index in the arena, or its offset in the file
        self.host_bytes, self.disk_bytes = int(sizes[is_host].sum()), int(sizes[~is_host].sum())
        self.disk = DiskFile(self.disk_bytes, max(self._sizes), pinned, disk_folder) if self.disk_bytes else None
        self._arena = Arena(sizes[is_host].tolist(), pinned, is_sure)  # last, because page-locked memory must be released again

    @property
    def record_bytes(self) -> int:
        """Size of the largest record, which is the size of a slot."""
        return max(layout.nbytes for layout in self.layouts)

    @property
    def num_records(self) -> int:
        return len(self._sizes)

    @property
    def pinned_bytes(self) -> int:
        """How many bytes of the host tier are page-locked."""
        return self._arena.pinned_bytes

    def on_disk(self, layer: int, expert: int) -> bool:
        """Whether an expert's record is on disk."""
        return not self._is_host[self._first[layer] + expert]

    def addresses(self, num_experts: int) -> np.ndarray:
        """Address of every record in host memory, [L · num_experts] int64 by flat id; 0 on disk and for missing experts."""
        found = np.zeros((len(self.counts), num_experts), dtype=np.int64)
        for index, (layer, expert) in enumerate(self._keys()):
            if self._is_host[index]:
                found[layer, expert] = self._arena.record(self._places[index]).data_ptr()
        return found.reshape(-1)

    def sizes(self, num_experts: int) -> np.ndarray:
        """Bytes of every record, in the same order; missing experts of a smaller layer count like the others."""
        return np.repeat(np.array([layout.nbytes for layout in self.layouts], dtype=np.int64), num_experts)

    def _keys(self) -> Iterator[tuple[int, int]]:
        return ((layer, expert) for layer, count in enumerate(self.counts) for expert in range(count))

    def record(self, layer: int, expert: int) -> torch.Tensor:
        """One expert's bytes, [record_bytes of its layer] uint8.

        A record from the disk tier is in a buffer that the calling thread's next read overwrites.

        Raises:
            EngineError: the disk fails, or the bytes differ from those written.
        """
        index = self._first[layer] + expert
        if self._is_host[index]:
            return self._arena.record(self._places[index])
        assert self.disk is not None
        return self.disk.read(self._places[index], self._sizes[index])

    def write(self, layer: int, expert: int, weights: dict[str, torch.Tensor]) -> None:
        """Store one expert's weights, by parameter name and without the expert axis; they are packed if their layer is."""
        packing = self.layouts[layer].packing
        self.write_record(layer, expert, weights if packing is None else packing.pack(weights))

    def write_record(self, layer: int, expert: int, tensors: dict[str, torch.Tensor]) -> None:
        """Store the contents of an expert's record, by the names of its layout's fields."""
        index = self._first[layer] + expert
        place, is_host = self._places[index], self._is_host[index]
        record = self._arena.record(place) if is_host else torch.zeros(self._sizes[index], dtype=torch.uint8, device="cpu")
        for field in self.layouts[layer].fields:
            field.view(record, expert).copy_(tensors[field.name])
        if not is_host:
            assert self.disk is not None
            self.disk.write(place, record)

    def close(self) -> None:
        """Release memory and disk."""
        self._arena.close()
        if self.disk:
            self.disk.close()

    def __enter__(self) -> "ExpertStore":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _striped(sizes: np.ndarray, budget_bytes: int | None) -> np.ndarray:
    """Which records the host holds, [n] bool: as many as fit, spread evenly over the model."""
    if budget_bytes is None or budget_bytes >= sizes.sum():
        return np.ones(len(sizes), dtype=np.bool_)
    if budget_bytes < 0:
        raise FinemoeError(f"host_memory is {budget_bytes} bytes; give a positive budget, or omit it to keep all in memory")
    share, credit_bytes = budget_bytes / sizes.sum(), 0.0
    is_host = np.zeros(len(sizes), dtype=np.bool_)
    for index, size in enumerate(sizes.tolist()):
        credit_bytes += share * size
        if credit_bytes >= size:
            credit_bytes -= size
            is_host[index] = True
    return is_host


@dataclass(eq=False)
class _Lane:
    """One calling thread's buffer and readers, which end with it: a demanded expert does not queue behind a prefetched one."""

    buffer: torch.Tensor
    readers: ThreadPoolExecutor


class DiskFile:
    """Records in one unnamed file, each read by several threads at once and kept out of the page cache.

    Args:
        num_bytes: size of the file.
        largest: size of its largest record, in bytes.
        pinned: page-lock the read buffers.
        folder: folder of the file; None is the system's folder for temporary files.
    """

    def __init__(self, num_bytes: int, largest: int, pinned: bool, folder: str | Path | None) -> None:
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open until `close`
            os.posix_fallocate(self._file.fileno(), 0, num_bytes)
        except OSError as error:
            place = folder or tempfile.gettempdir()
            raise FinemoeError(
                f"{num_bytes} bytes of disk cannot be allocated in {place}: {error}; set disk_folder to another folder"
            ) from error
        self._largest, self._pinned = largest, pinned
        self._checksums: dict[int, int] = {}
        self._unflushed_bytes = 0
        self._local = threading.local()
        self._lanes: weakref.WeakSet[_Lane] = weakref.WeakSet()

    @property
    def num_lanes(self) -> int:
        """How many threads have their own buffer and readers."""
        return len(self._lanes)

    def fileno(self) -> int:
        """The file's descriptor."""
        return self._file.fileno()

    def write(self, start: int, record: torch.Tensor) -> None:
        """Write one record, [n] uint8, and store its checksum."""
        data = memoryview(record.numpy().data)
        self._checksums[start] = xxhash.xxh3_64_intdigest(data)
        written = 0
        while written < len(data):
            written += os.pwrite(self.fileno(), data[written:], start + written)
        self._unflushed_bytes += len(data)
        if self._unflushed_bytes >= _FLUSH_BYTES:
            os.fdatasync(self.fileno())
            self._forget(0, 0)  # only data on disk can leave the page cache
            self._unflushed_bytes = 0

    def read(self, start: int, size: int) -> torch.Tensor:
        """Read one record into this thread's buffer, [size] uint8.

        Raises:
            EngineError: the read fails or is short, or the checksum differs.
        """
        lane = self._lane()
        buffer = lane.buffer[:size]
        data = memoryview(buffer.numpy().data)
        parts = [data[begin : begin + _READ_CHUNK_BYTES] for begin in range(0, size, _READ_CHUNK_BYTES)]
        offsets = range(start, start + size, _READ_CHUNK_BYTES)
        try:
            try:
                counts = list(lane.readers.map(self._read_part, parts, offsets))
            except RuntimeError:  # after the main thread ends, pools accept no more work, but other threads may still generate
                counts = list(map(self._read_part, parts, offsets))
        except BaseException as error:
            self._abandon(lane)
            if not isinstance(error, OSError):
                raise
            raise EngineError(f"reading an expert from disk failed: {error}") from error
        if sum(counts) != size:
            raise EngineError(f"reading an expert from disk returned {sum(counts)} of {size} bytes; the file was truncated")
        if xxhash.xxh3_64_intdigest(data) != self._checksums[start]:
            raise EngineError(
                "an expert read from disk does not match its checksum; the disk returned bytes that differ from those written"
            )
        return buffer

    def close(self) -> None:
        for lane in list(self._lanes):
            lane.readers.shutdown()
        self._file.close()

    def _abandon(self, lane: _Lane) -> None:
        """After a failed read: a part may still be written into its buffer, and an interrupt may have left its readers' locks
        held."""
        self._lanes.discard(lane)
        del self._local.lane
        lane.readers.shutdown(wait=False, cancel_futures=True)

    def _read_part(self, part: memoryview, offset: int) -> int:
        count = os.preadv(self.fileno(), [part], offset)
        self._forget(offset, len(part))
        return count

    def _forget(self, start: int, size: int) -> None:
        """Keep the page cache free for others: slots hold what is read here, and caching it too would only evict programs."""
        os.posix_fadvise(self.fileno(), start, size, os.POSIX_FADV_DONTNEED)

    def _lane(self) -> _Lane:
        if not hasattr(self._local, "lane"):
            lane = _Lane(self._new_buffer(), ThreadPoolExecutor(_NUM_READERS, thread_name_prefix="finemoe-disk"))
            self._lanes.add(lane)  # before its use, for `close` to find it
            self._local.lane = lane
        found: _Lane = self._local.lane
        return found

    def _new_buffer(self) -> torch.Tensor:
        return torch.empty(self._largest, dtype=torch.uint8, device="cpu", pin_memory=self._pinned)
