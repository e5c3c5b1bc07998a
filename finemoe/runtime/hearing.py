"""What a policy's predictions do on a `Board`, and a gate that a policy answers in compiled code. See `transitions`."""

import numpy as np

from finemoe import native
from finemoe.cache import addresses, kernels, prefetch_queue, state
from finemoe.cache.state import LAYER, NUM_PENDING
from finemoe.compiling import njit
from finemoe.maps import following, ranking
from finemoe.maps.following import NOTHING, OUT_OF_PLACE
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
_step_at, _ = function_types(1, _NUMBERS, 1, _SINGLES[None], _SINGLES, _NUMBERS)


@transition
def post(board, iteration, layer, probabilities, experts):  # type: ignore[no-untyped-def]
    """A layer's distribution is predicted, [J], and these of its experts are wanted, [n] ids; what is of another iteration (or of
    none, -1) is only heard, as is what is of a layer that has not run although others have.

    Returns:
        Whether prefetches wait that are of this iteration.
    """
    return _post(board, cache_of(board), iteration, layer, probabilities, experts)


@transition
def speak(board, step, table, distance, iteration, layer, values, selected, form):  # type: ignore[no-untyped-def]
    """A layer's gate has spoken, and a policy's step (see GateStep) predicts something of the layer `distance` ahead, which is as
    in `post`.

    Args:
        values, selected, form: what it said, see gates.Said.
    Returns:
        Whether prefetches wait that are of this iteration; NO_DISTRIBUTION; OUT_OF_PLACE; or UNSOUND: the step's answer is
        impossible.
    """
    cache = cache_of(board)
    num_experts, target = cache.stats.num_experts, layer + distance
    probabilities, experts = np.empty(num_experts, dtype=np.float32), np.empty(num_experts, dtype=np.int64)
    probs = np.empty((len(values), num_experts), dtype=np.float32)
    if not fill_distribution(values, selected, form, probs):
        return np.int64(NO_DISTRIBUTION)
    count = _step_at(step)(table, layer, probs, probabilities, experts)
    if count == NOTHING:
        return np.int64(0)
    if count == OUT_OF_PLACE:
        return np.int64(OUT_OF_PLACE)
    is_possible = 0 <= count <= num_experts and 0 <= target * num_experts < len(cache.presence)
    if not (is_possible and are_sound(probabilities, experts[:count], num_experts)):
        return np.int64(UNSOUND)
    return np.int64(_post(board, cache, iteration, target, probabilities, experts[:count]))


@njit(cache=True, nogil=True)
def _post(board, cache, iteration, layer, probabilities, experts):  # type: ignore[no-untyped-def]
    num_layers, num_experts = len(cache.stats.turns), cache.stats.num_experts
    lock(board[at.MUTEX])
    kernels.hear(cache, layer, probabilities)
    may_run = iteration <= 1 or bool_at(board[at.HAS_RUN], num_layers)[layer]  # not what stood idle so far
    if may_run and iteration >= 0 and layer > cache.counts[LAYER]:
        int64_at(board[at.FORESEEN_IN], num_layers)[layer] = iteration
        float32_at(board[at.FORESEEN] + 4 * layer * num_experts, num_experts)[:] = probabilities
    is_of_now = iteration == board[at.ITERATION]
    if is_of_now and may_run and len(experts):
        prefetch_queue.post_prefetches(cache, experts + layer * num_experts)
        if cache.counts[NUM_PENDING]:
            wake_all(board[at.WORK])
    is_wanted = is_of_now and cache.counts[NUM_PENDING] > 0
    unlock(board[at.MUTEX])
    return is_wanted
