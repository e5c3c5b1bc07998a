"""Caches of every size at once, as one stack (Mattson et al., Evaluation techniques for storage hierarchies, 1970).

A rule's weight for an expert depends on what was demanded, never on the content of a cache. With on-demand loading, a larger
cache therefore holds everything that a smaller one holds, and the experts can be ordered such that the first S of them are the
content of a cache of S slots: an expert is a hit in every cache that is larger than its place in this order.

Sets are accessed as a whole (DESIGN 4): after an event with the set A, a cache of S slots holds A and, of the rest of its
content, the S - |A| experts with the highest weight. One walk down the stack computes this for all S: experts that do not fit in
a cache wait in a *pool*, and the next larger cache keeps the best of them. The walk does not apply to caches smaller than A,
which serve A in turns.
"""

from typing import NamedTuple

import numpy as np

from finemoe.cache import kernels, prefetch_queue, state
from finemoe.cache.kernels import count_visit, goes_first
from finemoe.cache.rules.base import EvictionRule
from finemoe.cache.state import Statistics, empty_state
from finemoe.compiling import borrowing, njit
from finemoe.stale_kernels import forget_stale_kernels

forget_stale_kernels(__file__, kernels.__file__, prefetch_queue.__file__, state.__file__)
_WEIGHED_AT_ONCE = 64  # experts; weights computed beyond the deepest hit are not needed


class Stack(NamedTuple):
    """N = L·J experts by flat id.

    Attributes:
        stats: what the rule reads. order: [N] the experts demanded so far; a cache of S slots holds the first S.
        place: [N] index of each expert in `order`, or -1. length: [1] number of experts in `order`. worth: [N] weights of the
            experts in `order`, by place. running: [N] whether the running layer demands it. pool, pool_worth: [J + 1] experts
            that wait for a larger cache.
    """

    stats: Statistics
    order: np.ndarray
    place: np.ndarray
    length: np.ndarray
    worth: np.ndarray
    running: np.ndarray
    pool: np.ndarray
    pool_worth: np.ndarray


class Demands(NamedTuple):
    """A block of E layer events, in order.

    Attributes:
        layers: [E]. begins, demanded, next_use: as in kernel_inputs.Events. owners: [E] the request of each event.
    """

    layers: np.ndarray
    begins: np.ndarray
    demanded: np.ndarray
    next_use: np.ndarray
    owners: np.ndarray


def empty_stack(rule: EvictionRule, num_layers: int, num_experts: int) -> Stack:
    """A stack without experts."""
    count = num_layers * num_experts
    return Stack(
        stats=empty_state(num_layers, num_experts, 1, rule.own(num_experts)).stats,
        order=np.zeros(count, dtype=np.int64),
        place=np.full(count, -1),
        length=np.zeros(1, dtype=np.int64),
        worth=np.zeros(count),
        running=np.zeros(count, dtype=np.bool_),
        pool=np.zeros(num_experts + 1, dtype=np.int64),
        pool_worth=np.zeros(num_experts + 1),
    )


@njit(cache=True, nogil=True, _nrt=False)
def run(stack, demands, weigh, visit, smallest, found):  # type: ignore[no-untyped-def]
    """Process a block of events.

    Args:
        smallest: [N + 1] for each place (the last entry is for experts never demanded), the index of the smallest cache that
            includes it.
        found: [requests, sizes + 1] counts of demanded experts by request and that index; this function adds to it.
    """
    for event in range(demands.layers.shape[0]):
        layer, owner = demands.layers[event], demands.owners[event]
        span = slice(demands.begins[event], demands.begins[event + 1])
        experts, base = demands.demanded[span], layer * stack.stats.num_experts
        visit(stack.stats, layer, experts)
        for expert in experts:
            found[owner, smallest[stack.place[base + expert]]] += 1
        count_visit(stack.stats, layer, experts)
        for index in range(experts.shape[0]):
            stack.stats.next_use[base + experts[index]] = demands.next_use[demands.begins[event] + index]
        _restack(stack, layer, experts, weigh)


@borrowing
def _restack(stack, layer, experts, weigh):  # type: ignore[no-untyped-def]
    """Put the set first; experts that it pushes out of a cache move to the next cache with room for them."""
    base, count, length = layer * stack.stats.num_experts, experts.shape[0], stack.length[0]
    for expert in experts:
        stack.running[base + expert] = True
        stack.length[0] += stack.place[base + expert] < 0
    place, waiting, weighed = 0, 0, 0
    while place < count or waiting > 0:
        is_new = False
        if place < length:
            if place == weighed:
                weighed = min(place + _WEIGHED_AT_ONCE, length)
                weigh(stack.stats, stack.order[place:weighed], stack.worth[place:weighed])
            is_new = not stack.running[stack.order[place]]
        if place < count:
            kept = base + experts[place]
        elif is_new and _is_kept(stack, layer, place, waiting - 1):
            place += 1
            continue
        else:
            waiting -= 1
            kept = stack.pool[waiting]
        if is_new:
            _wait(stack, layer, place, waiting)
            waiting += 1
        stack.order[place] = kept
        stack.place[kept] = place
        place += 1
    for expert in experts:
        stack.running[base + expert] = False


@borrowing
def _wait(stack, layer, place, waiting):  # type: ignore[no-untyped-def]
    """Add the expert at a place of the stack to the pool, whose last entry is the best."""
    index = waiting
    while index > 0 and not _is_kept(stack, layer, place, index - 1):
        stack.pool[index], stack.pool_worth[index] = stack.pool[index - 1], stack.pool_worth[index - 1]
        index -= 1
    stack.pool[index], stack.pool_worth[index] = stack.order[place], stack.worth[place]


@borrowing
def _is_kept(stack, layer, place, index):  # type: ignore[no-untyped-def]
    """Whether to keep the expert at a place of the stack rather than one in the pool."""
    worth, other_worth = stack.worth[place], stack.pool_worth[index]
    if worth != other_worth:
        return worth > other_worth
    return goes_first(stack.stats, layer, stack.pool[index], stack.order[place])
