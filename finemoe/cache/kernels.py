"""What may happen to a device's cache, each transition said once: replays and the live engine run these (section 4.5).

Accounting only: a slot is a number. Access is event-atomic (DESIGN 4): the union of a layer's demanded experts is accessed at
once, hits are judged before anything is admitted, and none of the set can be a victim while the layer runs.
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
    """No layer runs; nothing that an earlier iteration asked for waits or is awaited any more."""
    end_layer(cache)
    cache.counts[LAYER] = -1
    for place in range(cache.counts[HELD]):
        cache.awaiting[cache.held[place]] = False
    forget_prefetches(cache)


@borrowing
def end_layer(cache):  # type: ignore[no-untyped-def]
    """What the running layer demanded may be evicted."""
    layer, num_experts = cache.counts[LAYER], cache.stats.num_experts
    if layer >= 0:
        for flat in range(layer * num_experts, (layer + 1) * num_experts):
            cache.running[flat] = False


@borrowing
def access(cache, layer, experts, found):  # type: ignore[no-untyped-def]
    """A layer's demanded set is judged and marked, then counted. The rule has learned from it before (see `demand`).

    Args:
        experts: [n] distinct ids. found: [n] uint8, filled with where each was.
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
    """A layer's demanded set enters the statistics."""
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
    """A layer demands its set: the rule learns from it (`visit`, which sees the statistics without it), and it is accessed."""
    visit(cache.stats, layer, experts)
    access(cache, layer, experts, found)


@borrowing
def foresee(cache, layer, experts, next_use):  # type: ignore[no-untyped-def]
    """When each of a layer's experts is demanded next, [n] event numbers."""
    for index in range(experts.shape[0]):
        cache.stats.next_use[layer * cache.stats.num_experts + experts[index]] = next_use[index]
    cache.counts[IS_WEIGHED] = False


@borrowing
def hear(cache, layer, probabilities):  # type: ignore[no-untyped-def]
    """A layer's distribution is predicted, [J], for its next turn."""
    base = layer * cache.stats.num_experts
    for expert in range(cache.stats.num_experts):
        cache.stats.expected[base + expert] = probabilities[expert]
    cache.stats.foretold[layer] = cache.stats.turns[layer]
    cache.counts[IS_WEIGHED] = False


@borrowing
def release(cache, layer, experts):  # type: ignore[no-untyped-def]
    """Experts of the running set that have been used in this call and may now be victims."""
    for expert in experts:
        cache.running[layer * cache.stats.num_experts + expert] = False


@borrowing
def admit(cache, flat, is_prefetch, weigh):  # type: ignore[no-untyped-def]
    """Give an absent expert a slot, as `give_slot`; the rule weighs the held experts first, if that is needed and was not done
    since something changed their worth. A prefetch that must gain something is weighed, too: a free slot is worth nothing, and of
    the others it takes none that is worth as much as itself, less the gain (after the third rule of Cao et al., A study of
    integrated prefetching and caching strategies, 1995: never let go what is needed before what is brought)."""
    price = np.inf
    if is_prefetch and cache.counts[LEAST_GAIN] != ANY_GAIN:
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
    """What the rule says an absent expert would be worth. It is weighed in the first slot's place, for nothing can be allocated
    here, and that has its own back afterwards."""
    held, worth = cache.held[0], cache.worth[0]
    cache.held[0] = flat
    weigh(cache.stats, cache.held[:1], cache.worth[:1])
    price = cache.worth[0]
    cache.held[0], cache.worth[0] = held, worth
    return price


@borrowing
def give_slot(cache, flat, is_prefetch, price=np.inf):  # type: ignore[no-untyped-def]
    """Give an absent expert a slot, evicting the least worthy if none is free; it is LOADING from then on.

    Args:
        price: what whoever goes must be worth less than; a free slot is worth nothing.
    Returns:
        (slot, evicted expert or -1, whether that had been prefetched and was never demanded); slot -1 where every slot holds an
        expert that must stay or is worth the price.
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
    """Slot of the least worthy expert that may go, or -1: not awaited if any such is left."""
    best, least, is_best_awaited = -1, 0.0, True
    for slot in range(cache.held.shape[0]):
        worth = cache.worth[slot]
        if worth > least and not is_best_awaited:  # most of them, awaited or not
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
    """Which of two equally worthy experts goes while a layer runs: the less frequent, else that of the layer farther away, else
    the lower id."""
    frequency, layer_of, num_layers = stats.frequency, stats.layer_of, stats.turns.shape[0]
    if frequency[flat] != frequency[other]:
        return frequency[flat] < frequency[other]
    until, other_until = layer_of[flat] - layer - 1, layer_of[other] - layer - 1
    until += num_layers * (until < 0)
    other_until += num_layers * (other_until < 0)
    return until > other_until or (until == other_until and flat < other)


@borrowing
def can_evict(cache):  # type: ignore[no-untyped-def]
    """Whether any held expert may be a victim."""
    for place in range(cache.counts[HELD]):  # noqa: SIM110 - no generators in compiled code
        if _is_movable(cache, cache.held[place]):
            return True
    return False


@borrowing
def complete(cache, flat):  # type: ignore[no-untyped-def]
    """The expert's load has ended."""
    settle(cache.presence, cache.counts, flat)


@borrowing
def settle(presence, counts, flat):  # type: ignore[no-untyped-def]
    """As `complete`, of the arrays that it changes: a call from Python takes a time that grows with what it hands over."""
    presence[flat] = RESIDENT
    counts[NUM_RESIDENT] += 1


@borrowing
def reset(cache):  # type: ignore[no-untyped-def]
    """Forget what the slots hold: every expert is absent, and what was held counts as evicted. The rule keeps its memory."""
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
