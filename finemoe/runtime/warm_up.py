"""Compiles everything that moves experts before the first token, so that no token waits for a compiler."""

import functools

import numpy as np

from finemoe.cache.rules import rule_named
from finemoe.cache.state import empty_state
from finemoe.maps.following import Following, follow_gate_address
from finemoe.maps.store import ExpertMapStore
from finemoe.report import NUM_MOVED
from finemoe.runtime import fetching, hearing, transitions
from finemoe.runtime.board import Board
from finemoe.runtime.gates import AS_IT_IS, Said
from finemoe.runtime.link import MemoryLink

_BYTES = 8


@functools.cache
def warm_up() -> None:
    """Run every transition once on private memory: one slot for two layers of two experts."""
    memory = np.zeros((5, _BYTES), dtype=np.uint8)
    records = memory.ctypes.data + _BYTES * np.arange(1, 5)
    sizes, one, probabilities = np.full(4, _BYTES), np.zeros(1, dtype=np.int64), np.ones(2, dtype=np.float32)
    board = Board(
        empty_state(2, 2, 1), rule_named("lru"), records, sizes, memory.ctypes.data, _BYTES, np.zeros(NUM_MOVED, dtype=np.int64)
    )
    board.connect(MemoryLink())
    places, told = board.places, np.zeros((4, 2), dtype=np.int64)
    transitions.start_iteration(places, 1, False)
    transitions.demand(places, 0, one, told)
    transitions.land(places, 0, 0, True, 0)
    hearing.post(places, 1, 1, probabilities, one)
    _speak(places)
    fetching.settle(places, fetching.take_next(places))
    fetching.note_in(places, 0, 0)
    transitions.load_late(places, 0)
    transitions.start_copy(places, 0, 0, int(records[0]))
    fetching.reserve(places, 0, True, True)
    transitions.use(places, 0, one)
    transitions.hold(places, 0)
    transitions.release(places, 0, one)
    transitions.can_make_room(places, 0, 0)
    fetching.let_demands_pass(places, 0)
    transitions.wait_resident(places, 0, 0)
    fetching.wait_idle(places, 0)
    transitions.end_demand(places)
    fetching.forget(places)
    fetching.leave(places)
    fetching.empty(places)
    fetching.close(places)
    fetching.serve(places)
    transitions.count_recalled(places, 0, one)


def _speak(places: np.ndarray) -> None:
    """Run the step of a policy that has nothing to predict."""
    following = Following(ExpertMapStore(2, 2, 0, 1, 1), 1, 1, 1, True, False)
    said = Said(np.full((1, 2), 0.5, dtype=np.float32), np.zeros((1, 1), dtype=np.int64), AS_IT_IS)
    hearing.speak(places, follow_gate_address(), following.table, 1, 1, 0, *said)
