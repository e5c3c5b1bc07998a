"""When every expert is demanded next, which Belady's rule needs to know."""

import os
import tempfile
from collections.abc import Iterator

import numpy as np

from finemoe.policies.block import Block
from finemoe.simulation.events import block_rows, demanded_sets, iteration_blocks
from finemoe.traces import RoutingTrace

NEVER = np.iinfo(np.int64).max


class FutureUses:
    """When every expert is demanded next, from the end of a trace to its beginning, block by block.

    Args:
        num_layers, num_experts: L, J.
    """

    def __init__(self, num_layers: int, num_experts: int) -> None:
        self._num_layers, self._num_experts = num_layers, num_experts
        self._next = np.full(num_layers * num_experts, NEVER, dtype=np.int64)

    @property
    def first_uses(self) -> np.ndarray:
        """The earliest event that demands each expert among the blocks seen so far, [L·J]; NEVER if none does."""
        return self._next

    def before(self, begins: np.ndarray, demanded: np.ndarray, first_event: int) -> np.ndarray:
        """For each demanded expert of a block's events, the number of the next event that demands it, or NEVER.

        Args:
            begins, demanded: of the block that precedes those seen so far. first_event: number of its first event.
        """
        events = np.repeat(np.arange(len(begins) - 1), np.diff(begins))
        flat = (events % self._num_layers) * self._num_experts + demanded
        order = np.argsort(flat, kind="stable")
        ordered = flat[order]
        is_last = np.append(ordered[1:] != ordered[:-1], True)
        following = np.empty(len(flat), dtype=np.int64)
        following[order[is_last]] = self._next[ordered[is_last]]
        following[order[:-1][~is_last[:-1]]] = events[order[1:][~is_last[:-1]]] + first_event
        is_first = np.insert(is_last[:-1], 0, True)
        self._next[ordered[is_first]] = events[order[is_first]] + first_event
        return following


class Future:
    """When every demanded expert is demanded next. It is computed from the trace's end to its beginning and kept on disk, because
    the future of a long trace does not fit in memory.

    Args:
        is_known: whether it is needed; otherwise nothing is computed.
    """

    def __init__(self, trace: RoutingTrace, is_known: bool) -> None:
        self.is_known = is_known
        self.first_uses = np.zeros(0, dtype=np.int64)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        if is_known:
            self._look_ahead(trace)

    def __enter__(self) -> "Future":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def take(self, count: int) -> np.ndarray:
        """The next uses of the next `count` demanded experts, in the trace's order."""
        self._file.seek(-8 * count, os.SEEK_CUR)
        found = np.frombuffer(bytearray(self._file.read(8 * count)), dtype=np.int64)
        self._file.seek(-8 * count, os.SEEK_CUR)
        return found

    def _look_ahead(self, trace: RoutingTrace) -> None:
        blocks = list(iteration_blocks(trace, block_rows(trace)))
        firsts = np.cumsum([0, *(block.num_iterations * trace.num_layers for block in blocks)])
        future = FutureUses(trace.num_layers, trace.num_experts)
        for block, first_event in _backwards(blocks, firsts):
            self._file.write(future.before(*demanded_sets(trace, block), first_event).tobytes())
            trace.release_pages()
        self.first_uses = future.first_uses


def _backwards(blocks: list[Block], firsts: np.ndarray) -> Iterator[tuple[Block, int]]:
    return zip(reversed(blocks), reversed(firsts[:-1].tolist()), strict=True)
