"""Streaming of a long prompt: nearly every expert will be demanded, so a layer's experts are loaded before its gate fires.

The layers of such an iteration run one after the other over the whole cache. What the next layers need must stay, however little
the eviction rule values it, and what has just run is needed again last. So the nearest layers' experts are awaited from the
start, but for a window of two layers of slots, through which the rest of the model passes.
"""

from finemoe.cache import prefetch_queue, state
from finemoe.cache.prefetch_queue import forget_prefetches, queue
from finemoe.cache.state import ABSENT, HELD, LAYER, RESIDENT, STREAMS
from finemoe.compiling import borrowing
from finemoe.stale_kernels import forget_stale_kernels

forget_stale_kernels(__file__, prefetch_queue.__file__, state.__file__)
_LAYERS = 2  # in the window: the running one and the next


@borrowing
def start_streaming(cache):  # type: ignore[no-untyped-def]
    """Stream the iteration that starts: keep what its nearest layers need, and queue the first experts that are absent."""
    cache.counts[STREAMS] = True
    kept = cache.held.shape[0] - _window(cache)
    for flat in range(cache.presence.shape[0]):
        if kept <= 0:
            break
        if cache.presence[flat] != ABSENT:
            cache.awaiting[flat] = True
            kept -= 1
    stream_ahead(cache)


@borrowing
def stream_ahead(cache):  # type: ignore[no-untyped-def]
    """Queue the nearest absent experts of the later layers, at most a window of them, and only as many as there is room for
    without evicting what the running layer or a nearer one needs. This replaces what is queued."""
    forget_prefetches(cache)
    if not cache.counts[STREAMS]:
        return
    room, most = _room(cache), _window(cache)
    for flat in range((cache.counts[LAYER] + 1) * cache.stats.num_experts, cache.presence.shape[0]):
        if not (room > 0 and most > 0):
            break
        if cache.presence[flat] == ABSENT:
            if cache.is_local[flat]:
                queue(cache, flat, _popularity(cache, flat))
                room -= 1
                most -= 1
        elif not cache.awaiting[flat]:
            cache.awaiting[flat] = True
            room -= 1


@borrowing
def _room(cache):  # type: ignore[no-untyped-def]
    """Number of slots that are free, or whose expert no layer of this iteration still needs."""
    room = cache.held.shape[0] - cache.counts[HELD]
    for place in range(cache.counts[HELD]):
        flat = cache.held[place]
        room += cache.presence[flat] == RESIDENT and not cache.running[flat] and not cache.awaiting[flat]
    return room


@borrowing
def _window(cache):  # type: ignore[no-untyped-def]
    """The experts of two layers, as many as the widest ones on this device have."""
    widest, num_experts = 0, cache.stats.num_experts
    for layer in range(cache.stats.turns.shape[0]):
        width = 0
        for flat in range(layer * num_experts, (layer + 1) * num_experts):
            width += cache.is_local[flat]
        widest = max(widest, width)
    return _LAYERS * widest


@borrowing
def _popularity(cache, flat):  # type: ignore[no-untyped-def]
    """The share of its layer's turns in which an expert was demanded, one half before there is any."""
    return (cache.stats.frequency[flat] - 0.5) / (cache.stats.turns[cache.stats.layer_of[flat]] + 1.0)
