"""How predictions act on a `Board`, including those of a policy that answers gates in compiled code. See `transitions`."""

import numpy as np

from finemoe import native
from finemoe.cache import addresses, kernels, prefetch_queue, state
from finemoe.cache.state import LAYER, NUM_PENDING, STREAMS
from finemoe.compiling import njit
from finemoe.maps import following, ranking
from finemoe.maps.following import OUT_OF_PLACE
from finemoe.native import bool_at, float32_at, function_types, int64_at, lock, transition, unlock, wake_all
from finemoe.policies import base
from finemoe.policies.base import are_sound
from finemoe.runtime import board as at
from finemoe.runtime import gates, transitions
from finemoe.runtime.gates import fill_distribution
from finemoe.runtime.transitions import cache_of
from finemoe.stale_kernels import forget_stale_kernels

_SOURCES = native.compiled, addresses, kernels, prefetch_queue, state, following, ranking, base, gates, transitions, at
forget_stale_kernels(__file__, *(one.__file__ for one in _SOURCES))
UNSOUND, NO_DISTRIBUTION = -4, -5

_NUMBERS, _SINGLES = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.float32)
_PREDICTIONS = _NUMBERS, _SINGLES[None], _NUMBERS, _NUMBERS[None]
_step_at, _ = function_types(1, _NUMBERS, 1, _SINGLES[None], _NUMBERS[None], *_PREDICTIONS)


@transition
def post(board, iteration, layer, probabilities, experts):  # type: ignore[no-untyped-def]
    """Take a layer's predicted distribution, [J], and the experts of it to load, [n] ids.

    A prediction for another iteration (or none, -1), for a streamed one, or for a layer that has not run although others have, is
    only noted.

    Returns:
        Whether prefetches of this iteration are pending.
    """
    cache = cache_of(board)
    lock(board[at.MUTEX])
    is_wanted = _post(board, cache, iteration, layer, probabilities, experts)
    unlock(board[at.MUTEX])
    return is_wanted


@transition
def speak(board, step, table, num_targets, iteration, layer, values, selected, form):  # type: ignore[no-untyped-def]
    """Run a policy's compiled step (see GateStep) on a layer's gate output; it makes up to `num_targets` predictions, as in
    `post`.

    Args:
        values, selected, form: the gate's output, see gates.Said.
    Returns:
        Whether prefetches of this iteration are pending; NO_DISTRIBUTION; OUT_OF_PLACE; or UNSOUND if the step's answer is
        impossible.
    """
    cache = cache_of(board)
    num_experts, is_wanted = cache.stats.num_experts, False
    layers, counts = np.empty(num_targets, dtype=np.int64), np.empty(num_targets, dtype=np.int64)
    probabilities = np.empty((num_targets, num_experts), dtype=np.float32)
    experts = np.empty((num_targets, num_experts), dtype=np.int64)
    probs = np.empty((len(values), num_experts), dtype=np.float32)
    if not fill_distribution(values, selected, form, probs):
        return np.int64(NO_DISTRIBUTION)
    made = _step_at(step)(table, layer, probs, selected, layers, probabilities, counts, experts)
    if made == OUT_OF_PLACE:
        return np.int64(OUT_OF_PLACE)
    if not (0 <= made <= num_targets and _are_possible(cache, made, layers, probabilities, counts, experts)):
        return np.int64(UNSOUND)
    lock(board[at.MUTEX])
    for place in range(made):
        wanted = experts[place, : counts[place]]
        is_wanted |= _post(board, cache, iteration, layers[place], probabilities[place], wanted)
    unlock(board[at.MUTEX])
    return np.int64(is_wanted)


@njit(cache=True, nogil=True)
def _are_possible(cache, made, layers, probabilities, counts, experts):  # type: ignore[no-untyped-def]
    """Whether these predictions concern existing layers, each at most once, with possible probabilities and experts."""
    num_layers, num_experts = len(cache.stats.turns), cache.stats.num_experts
    for place in range(made):
        if not (0 <= layers[place] < num_layers and 0 <= counts[place] <= num_experts):
            return False
        for earlier in range(place):
            if layers[earlier] == layers[place]:
                return False
        if not are_sound(probabilities[place], experts[place, : counts[place]], num_experts):
            return False
    return True


@njit(cache=True, nogil=True)
def _post(board, cache, iteration, layer, probabilities, experts):  # type: ignore[no-untyped-def]
    """`post`, with the board's lock held."""
    num_layers, num_experts = len(cache.stats.turns), cache.stats.num_experts
    kernels.hear(cache, layer, probabilities)
    may_run = iteration <= 1 or bool_at(board[at.HAS_RUN], num_layers)[layer]  # not a layer that has been idle so far
    if may_run and iteration >= 0 and layer > cache.counts[LAYER]:
        int64_at(board[at.FORESEEN_IN], num_layers)[layer] = iteration
        float32_at(board[at.FORESEEN] + 4 * layer * num_experts, num_experts)[:] = probabilities
    is_of_now = iteration == board[at.ITERATION]
    if is_of_now and may_run and len(experts) and not cache.counts[STREAMS]:
        prefetch_queue.post_prefetches(cache, experts + layer * num_experts)
        if cache.counts[NUM_PENDING]:
            wake_all(board[at.WORK])
    return is_of_now and cache.counts[NUM_PENDING] > 0
