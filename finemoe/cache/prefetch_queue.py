"""The queue of prefetches for a device's link: which one is next, and which are stale (section 4.5)."""

import numpy as np

from finemoe.cache import state
from finemoe.cache.state import ABSENT, AHEAD, LAYER, NUM_PENDING
from finemoe.compiling import borrowing, njit
from finemoe.stale_kernels import forget_stale_kernels

forget_stale_kernels(__file__, state.__file__)
NOTHING = -1


@borrowing
def prefetch_priority(probability, layer, running):  # type: ignore[no-untyped-def]
    """p / (l - l_now); `running` is the running layer, -1 before the first. Experts of the running layer get the priority of the
    next layer's."""
    return probability / max(layer - running, 1)


@njit(cache=True)
def prefetch_priorities(probabilities, layers, running):  # type: ignore[no-untyped-def]
    """`prefetch_priority` of many, [n] each."""
    priorities = np.empty(len(layers))
    for index in range(len(layers)):
        priorities[index] = prefetch_priority(probabilities[index], layers[index], running[index])
    return priorities


@borrowing
def post_prefetches(cache, wanted):  # type: ignore[no-untyped-def]
    """Queue absent experts, [n] flat ids in the order requested, with their expected probability; those that are resident or
    loading are marked as awaited instead. Experts that are already queued keep their place."""
    for flat in wanted:
        if _is_late(cache, flat):
            continue
        if cache.presence[flat] != ABSENT:
            if cache.stats.layer_of[flat] > cache.counts[LAYER]:
                cache.awaiting[flat] = True
            continue
        queue(cache, flat, cache.stats.expected[flat])


@borrowing
def queue(cache, flat, probability):  # type: ignore[no-untyped-def]
    """Queue an absent expert, unless it is queued already, and note its probability."""
    if cache.urgency[flat] < 0:
        cache.pending[cache.counts[NUM_PENDING]] = flat
        cache.counts[NUM_PENDING] += 1
    cache.urgency[flat] = probability


@borrowing
def _is_late(cache, flat):  # type: ignore[no-untyped-def]
    """Whether the expert's layer is running or over."""
    return cache.stats.layer_of[flat] < cache.counts[LAYER] + cache.counts[AHEAD]


@borrowing
def take_most_urgent(cache):  # type: ignore[no-untyped-def]
    """Remove the prefetch with the highest priority, the earliest request among equals, and all stale ones; returns its flat id,
    or NOTHING."""
    pending, urgency = cache.pending, cache.urgency
    kept, best, best_priority = 0, NOTHING, -1.0
    for place in range(cache.counts[NUM_PENDING]):
        flat = pending[place]
        if _is_late(cache, flat) or cache.presence[flat] != ABSENT:
            urgency[flat] = -1.0
            continue
        pending[kept] = flat
        priority = prefetch_priority(urgency[flat], cache.stats.layer_of[flat], cache.counts[LAYER])
        if priority > best_priority:
            best, best_priority = kept, priority
        kept += 1
    if best == NOTHING:
        cache.counts[NUM_PENDING] = kept
        return NOTHING
    taken = pending[best]
    for place in range(best, kept - 1):
        pending[place] = pending[place + 1]
    urgency[taken] = -1.0
    cache.counts[NUM_PENDING] = kept - 1
    return taken


@borrowing
def forget_prefetches(cache):  # type: ignore[no-untyped-def]
    """Empty the queue."""
    for place in range(cache.counts[NUM_PENDING]):
        cache.urgency[cache.pending[place]] = -1.0
    cache.counts[NUM_PENDING] = 0
