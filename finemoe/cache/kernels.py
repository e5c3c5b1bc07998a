"""The transitions of a device's cache, each defined once and used by replays and the live engine (section 4.5).

Accounting only: a slot is a number. Access is event-atomic (DESIGN 4): the union of a layer's demanded experts is accessed at
once, hits are determined before anything is admitted, and no member of the set can be evicted while the layer runs.
"""

import numpy as np

from finemoe.cache import prefetch_queue, state
from finemoe.cache.prefetch_queue import forget_prefetches
from finemoe.cache.state import (
    ABSENT,
    ADMITTED,
    ANY_GAIN,
    DEMAND_LOADS,
    EVICTED,
    HELD,
    IS_WEIGHED,
    LAST_LAYER,
    LAYER,
    LEAST_GAIN,
    LOADING,
    NUM_RESIDENT,
    PASS,
    PREFETCH_LOADS,
    RESIDENT,
    STREAMS,
    TIME,
    UNWEIGHED,
    USEFUL,
    WASTED,
)
from finemoe.compiling import borrowing
from finemoe.stale_kernels import forget_stale_kernels

forget_stale_kernels(__file__, prefetch_queue.__file__, state.__file__)


@borrowing
def start_iteration(cache):  # type: ignore[no-untyped-def]
    """Reset to the start of an iteration: no layer runs, and requests of an earlier iteration are no longer queued or awaited."""
    end_layer(cache)
    cache.counts[LAYER], cache.counts[STREAMS] = -1, False
    for place in range(cache.counts[HELD]):
        cache.awaiting[cache.held[place]] = False
    forget_prefetches(cache)


@borrowing
def end_layer(cache):  # type: ignore[no-untyped-def]
    """Allow eviction of what the running layer demanded."""
    layer, num_experts = cache.counts[LAYER], cache.stats.num_experts
    if layer >= 0:
        for flat in range(layer * num_experts, (layer + 1) * num_experts):
            cache.running[flat] = False


@borrowing
def access(cache, layer, experts, found):  # type: ignore[no-untyped-def]
    """Classify, mark and count a layer's demanded set. The rule has already learned from it (see `demand`).

    Args:
        experts: [n] distinct ids. found: [n] uint8, filled with the state of each expert.
    """
    end_layer(cache)
    base = layer * cache.stats.num_experts
    cache.counts[LAYER] = layer
    for flat in range(base, base + cache.stats.num_experts):
        cache.awaiting[flat] = False
    for index in range(experts.shape[0]):
        flat = base + experts[index]
        found[index] = cache.presence[flat]
        cache.counts[USEFUL] += cache.undemanded[flat]
        cache.undemanded[flat] = False
        cache.running[flat] = True
    count_visit(cache.stats, layer, experts)
    cache.counts[IS_WEIGHED] = False


@borrowing
def count_visit(stats, layer, experts):  # type: ignore[no-untyped-def]
    """Add a layer's demanded set to the statistics."""
    stats.clock[TIME] += 1
    stats.turns[layer] += 1
    stats.clock[PASS] += layer <= stats.clock[LAST_LAYER]
    stats.clock[LAST_LAYER] = layer
    for expert in experts:
        flat = layer * stats.num_experts + expert
        stats.frequency[flat] += 1
        stats.last_visit[flat] = stats.clock[TIME]
        stats.last_pass[flat] = stats.clock[PASS]
        stats.last_turn[flat] = stats.turns[layer]


@borrowing
def demand(cache, layer, experts, found, visit):  # type: ignore[no-untyped-def]
    """Demand a layer's set: the rule learns from it (`visit`, which sees the statistics without it), then it is accessed."""
    visit(cache.stats, layer, experts)
    access(cache, layer, experts, found)


@borrowing
def foresee(cache, layer, experts, next_use):  # type: ignore[no-untyped-def]
    """Set when each of a layer's experts is demanded next, [n] event numbers."""
    for index in range(experts.shape[0]):
        cache.stats.next_use[layer * cache.stats.num_experts + experts[index]] = next_use[index]
    cache.counts[IS_WEIGHED] = False


@borrowing
def hear(cache, layer, probabilities):  # type: ignore[no-untyped-def]
    """Store the predicted distribution of a layer, [J], for its next turn."""
    base = layer * cache.stats.num_experts
    for expert in range(cache.stats.num_experts):
        cache.stats.expected[base + expert] = probabilities[expert]
    cache.stats.foretold[layer] = cache.stats.turns[layer]
    cache.counts[IS_WEIGHED] = False


@borrowing
def release(cache, layer, experts):  # type: ignore[no-untyped-def]
    """Mark experts of the running set as used, so that they may be evicted."""
    for expert in experts:
        cache.running[layer * cache.stats.num_experts + expert] = False


@borrowing
def admit(cache, flat, is_prefetch, weigh):  # type: ignore[no-untyped-def]
    """Give an absent expert a slot, like `give_slot`; the rule first weighs the held experts if their weights are outdated. With
    a minimum gain, a prefetch is weighed too: a free slot is worth nothing, and an occupied one is taken only if its expert is
    worth less than the prefetched one minus the gain (after the third rule of Cao et al., A study of integrated prefetching and
    caching strategies, 1995: never evict a block that is needed before the one to be fetched). In a streamed iteration, every
    prefetch is worth its slot."""
    price = np.inf
    if is_prefetch and cache.counts[LEAST_GAIN] != ANY_GAIN and not cache.counts[STREAMS]:
        price = _worth(cache, flat, weigh) - cache.counts[LEAST_GAIN] / 1000
    if cache.counts[HELD] == cache.held.shape[0]:
        if not cache.counts[IS_WEIGHED]:
            weigh(cache.stats, cache.held, cache.worth)
            cache.counts[IS_WEIGHED] = True
        elif cache.counts[UNWEIGHED] >= 0:
            place = cache.counts[UNWEIGHED]
            weigh(cache.stats, cache.held[place : place + 1], cache.worth[place : place + 1])
        cache.counts[UNWEIGHED] = -1
    return give_slot(cache, flat, is_prefetch, price)


@borrowing
def _worth(cache, flat, weigh):  # type: ignore[no-untyped-def]
    """The worth of an absent expert according to the rule. It is weighed in the place of the first slot, whose value is restored
    afterwards, because nothing can be allocated here."""
    held, worth = cache.held[0], cache.worth[0]
    cache.held[0] = flat
    weigh(cache.stats, cache.held[:1], cache.worth[:1])
    price = cache.worth[0]
    cache.held[0], cache.worth[0] = held, worth
    return price


@borrowing
def give_slot(cache, flat, is_prefetch, price=np.inf):  # type: ignore[no-untyped-def]
    """Give an absent expert a slot, evicting the least worthy expert if none is free; its state is LOADING from then on.

    Args:
        price: the evicted expert must be worth less than this; a free slot is worth nothing.
    Returns:
        (slot, evicted expert or -1, whether that one had been prefetched and never demanded); the slot is -1 if every slot holds
        an expert that must stay or is worth at least the price.
    """
    counts, evicted, is_wasted = cache.counts, -1, False
    slot = counts[HELD]
    if slot < cache.held.shape[0]:
        if not price > 0:
            return -1, evicted, is_wasted
        counts[HELD] += 1
    else:
        slot = _weakest(cache)
        if slot < 0 or (price != np.inf and not cache.worth[slot] < price):
            return -1, evicted, is_wasted
        evicted = cache.held[slot]
        is_wasted = cache.undemanded[evicted]
        _evict(cache, evicted)
    cache.held[slot] = flat
    cache.slot_of[flat] = slot
    cache.presence[flat] = LOADING
    cache.undemanded[flat] = is_prefetch
    cache.awaiting[flat] = is_prefetch and cache.stats.layer_of[flat] != counts[LAYER]
    counts[UNWEIGHED] = slot
    counts[ADMITTED] += 1
    if is_prefetch:
        counts[PREFETCH_LOADS] += 1
    else:
        counts[DEMAND_LOADS] += 1
    return slot, evicted, is_wasted


@borrowing
def _evict(cache, flat):  # type: ignore[no-untyped-def]
    cache.counts[EVICTED] += 1
    cache.counts[NUM_RESIDENT] -= 1
    cache.counts[WASTED] += cache.undemanded[flat]
    cache.presence[flat] = ABSENT
    cache.slot_of[flat] = -1
    cache.undemanded[flat] = cache.awaiting[flat] = False


@borrowing
def _weakest(cache):  # type: ignore[no-untyped-def]
    """Slot of the least worthy expert that may be evicted, or -1; awaited experts are chosen only if no other is left."""
    best, least, is_best_awaited = -1, 0.0, True
    for slot in range(cache.held.shape[0]):
        worth = cache.worth[slot]
        if worth > least and not is_best_awaited:  # true for most of them, awaited or not
            continue
        flat = cache.held[slot]
        is_awaited = cache.awaiting[flat]
        if not _is_movable(cache, flat) or (is_awaited and not is_best_awaited):
            continue
        if (
            best < 0
            or is_awaited != is_best_awaited
            or worth < least
            or (worth == least and goes_first(cache.stats, cache.counts[LAYER], flat, cache.held[best]))
        ):
            best, least, is_best_awaited = slot, worth, is_awaited
    return best


@borrowing
def _is_movable(cache, flat):  # type: ignore[no-untyped-def]
    return cache.presence[flat] == RESIDENT and not cache.running[flat]


@borrowing
def goes_first(stats, layer, flat, other):  # type: ignore[no-untyped-def]
    """Which of two equally worthy experts is evicted while a layer runs: the less frequent one, then the one of the layer farther
    away, then the lower id."""
    frequency, layer_of, num_layers = stats.frequency, stats.layer_of, stats.turns.shape[0]
    if frequency[flat] != frequency[other]:
        return frequency[flat] < frequency[other]
    until, other_until = layer_of[flat] - layer - 1, layer_of[other] - layer - 1
    until += num_layers * (until < 0)
    other_until += num_layers * (other_until < 0)
    return until > other_until or (until == other_until and flat < other)


@borrowing
def can_evict(cache):  # type: ignore[no-untyped-def]
    """Whether any held expert may be evicted."""
    for place in range(cache.counts[HELD]):  # noqa: SIM110 - no generators in compiled code
        if _is_movable(cache, cache.held[place]):
            return True
    return False


@borrowing
def complete(cache, flat):  # type: ignore[no-untyped-def]
    """Mark the load of an expert as finished."""
    settle(cache.presence, cache.counts, flat)


@borrowing
def settle(presence, counts, flat):  # type: ignore[no-untyped-def]
    """Like `complete`, with only the arrays that it changes: the time of a call from Python grows with what it passes."""
    presence[flat] = RESIDENT
    counts[NUM_RESIDENT] += 1


@borrowing
def reset(cache):  # type: ignore[no-untyped-def]
    """Clear all slots: every expert is absent, and held experts count as evicted. The rule keeps what it learned."""
    counts = cache.counts
    for place in range(counts[HELD]):
        flat = cache.held[place]
        cache.presence[flat] = ABSENT
        cache.slot_of[flat] = -1
        cache.undemanded[flat] = cache.awaiting[flat] = False
    end_layer(cache)
    counts[EVICTED] = counts[ADMITTED]
    counts[HELD] = counts[NUM_RESIDENT] = counts[IS_WEIGHED] = 0
    forget_prefetches(cache)
