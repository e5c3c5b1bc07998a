"""Events, demanded sets and the future, against plain loops."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from finemoe.simulation.events import demanded_sets, iteration_blocks
from finemoe.simulation.future import NEVER, FutureUses
from finemoe.traces import RoutingTrace


def mixed_trace(seed: int) -> RoutingTrace:
    """Requests with prefills of several rows and decode steps of one."""
    rng = np.random.default_rng(seed)
    steps = [np.repeat(np.arange(rng.integers(2, 6)), 1) for _ in range(4)]
    steps = [np.concatenate([np.zeros(rng.integers(0, 4), dtype=int), step]) for step in steps]
    offsets = np.cumsum([0, *map(len, steps)])
    ids = np.stack([[rng.permutation(5)[:2] for _ in range(3)] for _ in range(offsets[-1])])
    step = np.concatenate(steps)
    probs = rng.dirichlet(np.ones(2), size=(offsets[-1], 3))
    return RoutingTrace.from_topk(ids, probs, offsets, 5, step=step, phase=(step > 0).astype(np.uint8))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), block_rows=st.integers(1, 40))
def test_blocks_cover_the_iterations_and_sets_are_unions(seed, block_rows):
    trace = mixed_trace(seed)
    expected = list(trace.iterations())
    found, sets = [], []
    for block in iteration_blocks(trace, block_rows):
        begins, demanded = demanded_sets(trace, block)
        sets += [demanded[a:b].tolist() for a, b in pairwise(begins)]
        for number in range(block.num_iterations):
            rows = slice(block.rows.start + int(block.starts[number]), block.rows.start + int(block.starts[number + 1]))
            found.append((int(block.requests[number]), rows))
            assert block.is_prefill[number] == (trace.phase[rows.start] == 0)
    assert found == [(request, rows) for request, _, rows in expected]
    assert sets == [np.unique(trace.expert_ids[rows, layer]).tolist() for _, _, rows in expected for layer in range(3)]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), block_rows=st.integers(1, 40))
def test_the_future_is_what_comes_next(seed, block_rows):
    trace = mixed_trace(seed)
    blocks = list(iteration_blocks(trace, block_rows))
    sets = [demanded_sets(trace, block) for block in blocks]
    firsts = np.cumsum([0, *(block.num_iterations * 3 for block in blocks)])
    future = FutureUses(3, 5)
    found = [future.before(*sets[number], int(firsts[number])) for number in reversed(range(len(blocks)))][::-1]
    flat = [(event % 3, e) for (begins, d), first in zip(sets, firsts, strict=False) for event, e in _entries(begins, d, first)]
    events = [event for (begins, d), first in zip(sets, firsts, strict=False) for event, _ in _entries(begins, d, first)]
    for place, value in enumerate(np.concatenate(found).tolist()):
        later = [events[other] for other in range(place + 1, len(flat)) if flat[other] == flat[place]]
        assert value == (later[0] if later else NEVER)


def _entries(begins, demanded, first):
    return [
        (int(first) + event, e) for event in range(len(begins) - 1) for e in demanded[begins[event] : begins[event + 1]].tolist()
    ]
