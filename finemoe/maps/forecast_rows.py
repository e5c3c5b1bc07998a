"""The compiled memory of a forecaster: the rows of the running request, and what those similar to the current one demanded."""

import math

import numpy as np

from finemoe.compiling import borrowing
from finemoe.maps import forecast_state
from finemoe.maps.forecast_state import (
    ALWAYS,
    CONTINUES,
    FILLED,
    IS_PREFILL,
    LAST_LAYER,
    LEARNS,
    NEXT_SLOT,
    NONE,
    NUM_ASKED,
    NUM_KEPT,
    NUM_ROWS,
    ROWS,
    TABLE,
    TOP_K,
    UNUSABLE,
    inner,
)
from finemoe.stale_kernels import forget_stale_kernels

forget_stale_kernels(__file__, forecast_state.__file__)
_FADING = np.float32(0.9)  # decay of an affinity per layer: the latest gates count most
_CARRIED = np.float32(0.3)  # share of the previous tokens' affinity that is carried over
_SHARPNESS = np.float32(8.0)  # a remembered row has weight exp(sharpness x affinity)
_NEGLIGIBLE = np.float32(-7.0)  # weights below exp(-7) of the largest are skipped
_LEAST, _GREATEST = 0.02, 0.98  # clip for the shares of votes
_LEAST_ODDS = math.log(_LEAST / (1 - _LEAST))
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@inner
def forget_rows(counters, before, after):  # type: ignore[no-untyped-def]
    """Start another request with an empty memory."""
    for place in (NEXT_SLOT, FILLED, NUM_KEPT, NUM_ASKED, NUM_ROWS, IS_PREFILL, CONTINUES):
        counters[place] = 0
    counters[LAST_LAYER] = NONE
    for slot in range(len(before)):
        before[slot] = after[slot] = NONE


@inner
def continues(counters, num_rows, is_prefill):  # type: ignore[no-untyped-def]
    """Whether the rows of a new iteration follow those of the last one, row by row: consecutive decode steps of equal size."""
    return counters[NUM_ROWS] == num_rows and not is_prefill and not counters[IS_PREFILL]


@inner
def place_rows(state, num_rows, is_prefill):  # type: ignore[no-untyped-def]
    """Assign slots to the rows of a new iteration, the oldest slots first: for a prefill the last rows, as many as leave the
    slots of the last iteration untouched; for other iterations the sampled rows."""
    counters = state.counters
    most_asked, num_slots = len(state.memory.asked), len(state.memory.slots)
    _find_origins(state, num_rows, is_prefill)
    kept = min(num_rows, num_slots - most_asked if is_prefill else most_asked)
    counters[NUM_KEPT], counters[NUM_ASKED] = kept, min(kept, most_asked)
    counters[NUM_ROWS], counters[IS_PREFILL] = num_rows, is_prefill
    for place in range(kept):
        slot = counters[NEXT_SLOT]
        _clear_slot(state, slot)
        counters[NEXT_SLOT], counters[FILLED] = (slot + 1) % num_slots, max(counters[FILLED], slot + 1)
        state.memory.slots[place] = slot
        state.memory.numbers[place] = num_rows - kept + place if is_prefill else place * num_rows // kept
        if is_prefill and place:
            _link(state, state.memory.slots[place - 1], slot)
    for row in range(counters[NUM_ASKED]):
        state.memory.asked[row] = state.memory.slots[place_asked(counters, row)]
        if state.memory.previous[row] >= 0:
            _link(state, state.memory.previous[row], state.memory.asked[row])
    _start_affinities(state)


@inner
def place_asked(counters, row):  # type: ignore[no-untyped-def]
    """Which of this iteration's remembered rows a sampled row is: they are evenly spaced and include the last one."""
    return (row + 1) * counters[NUM_KEPT] // counters[NUM_ASKED] - 1


@inner
def _find_origins(state, num_rows, is_prefill):  # type: ignore[no-untyped-def]
    """Which row of the last iteration each sampled row follows: its own in decode, the last one of a prefill, or none."""
    counters, num_before = state.counters, state.counters[NUM_ASKED]
    counters[CONTINUES] = continues(counters, num_rows, is_prefill)
    for row in range(len(state.memory.asked)):
        state.memory.origins[row] = row if counters[CONTINUES] and row < num_before else NONE
    if num_before and counters[IS_PREFILL] and not is_prefill and num_rows == 1:
        state.memory.origins[0] = num_before - 1
    for row in range(len(state.memory.asked)):
        state.memory.previous[row] = state.memory.asked[state.memory.origins[row]] if state.memory.origins[row] >= 0 else NONE


@inner
def _clear_slot(state, slot):  # type: ignore[no-untyped-def]
    if state.memory.after[slot] >= 0:
        state.memory.before[state.memory.after[slot]] = NONE
    if state.memory.before[slot] >= 0:
        state.memory.after[state.memory.before[slot]] = NONE
    state.memory.before[slot] = state.memory.after[slot] = NONE
    for layer in range(len(state.memory.demanded)):
        state.memory.demanded[layer, slot] = 0
        values = state.memory.values[layer, slot]
        for place in range(len(values)):
            values[place] = _ZERO


@inner
def _link(state, slot, follower):  # type: ignore[no-untyped-def]
    state.memory.after[slot] = follower
    state.memory.before[follower] = slot


@inner
def _start_affinities(state):  # type: ignore[no-untyped-def]
    """Initial affinities of this iteration's rows to those remembered, before any gate: those of their predecessors."""
    counters = state.counters
    last, own = state.memory.affinities[counters[TABLE]], state.memory.affinities[1 - counters[TABLE]]
    counters[TABLE] = 1 - counters[TABLE]
    for row in range(counters[NUM_ASKED]):
        origin = state.memory.origins[row]
        for slot in range(counters[FILLED]):
            before = state.memory.before[slot]
            is_known = origin >= 0 and before >= 0 and last[origin, before] > _ZERO
            own[row, slot] = _CARRIED * last[origin, before] if is_known else _ZERO
        for place in range(counters[NUM_KEPT]):
            own[row, state.memory.slots[place]] = UNUSABLE


@inner
def remember_gate(state, layer, probs, experts):  # type: ignore[no-untyped-def]
    """Store the gate output of this iteration's rows; probs [B, J], experts [B, K]."""
    top_k = min(state.counters[TOP_K], experts.shape[1])
    for place in range(state.counters[NUM_KEPT]):
        slot, number = state.memory.slots[place], state.memory.numbers[place]
        ids, values = state.memory.ids[layer, slot], state.memory.values[layer, slot]
        count = _demanded(experts[number], top_k, len(probs[number]), ids)
        state.memory.demanded[layer, slot] = count
        if count:
            keep_entries(probs[number], count, ids, values, state.scratch.left)
        if count and state.counters[LEARNS] == ALWAYS:
            state.networks.num_heard[layer] += 1
            for entry in range(count):
                state.networks.demands[layer, ids[entry]] += 1


@inner
def _demanded(experts, top_k, num_experts, ids):  # type: ignore[no-untyped-def]
    """Store the ids of the experts among the first `top_k`; other ids are not experts, because a token may skip the layer."""
    count = 0
    for place in range(top_k):
        if 0 <= experts[place] < num_experts:
            ids[count] = experts[place]
            count += 1
    return count


@borrowing
def keep_entries(probs, count, ids, values, left):  # type: ignore[no-untyped-def]
    """Keep the demanded experts, then the most probable others, up to the available number of entries.

    probs [J], the first `count` ids -> ids, values [F]; left [J] is scratch. Of equally probable experts the lower id comes
    first; entries with probability 0 have value 0.
    """
    for expert in range(len(probs)):
        left[expert] = probs[expert]
    for place in range(len(ids)):
        best = 0
        if place < count:
            best = ids[place]
        else:
            for expert in range(len(left)):
                if left[expert] > left[best]:
                    best = expert
        ids[place] = best
        values[place] = np.sqrt(max(left[best], _ZERO))
        left[best] = -_ONE
        if place >= count and values[place] == _ZERO:
            for rest in range(place, len(values)):
                values[rest] = _ZERO
            break


@inner
def resemble(state, layer, row):  # type: ignore[no-untyped-def]
    """Add to a row's affinities the similarity of a layer's gate to each remembered row: sum_j sqrt(p_j q_j), at most 1."""
    ids, values, slot = state.memory.ids[layer], state.memory.values[layer], state.memory.asked[row]
    affinities, own = state.memory.affinities[state.counters[TABLE], row, : state.counters[FILLED]], state.scratch.own
    for expert in range(len(own)):
        own[expert] = _ZERO
    for place in range(ids.shape[1]):
        own[ids[slot, place]] += values[slot, place]
    for other in range(len(affinities)):
        common = _ZERO
        for place in range(ids.shape[1]):
            common += own[ids[other, place]] * values[other, place]
        affinities[other] = _FADING * affinities[other] + common


@inner
def count_votes(state, layer, row, votes):  # type: ignore[no-untyped-def]
    """What the rows most similar to the current one demanded of the layers ahead: log odds of their weighted share, 0 at the
    minimum share; votes [Q]."""
    num_layers, num_experts = state.networks.demands.shape
    totals = state.scratch.totals
    for index in range(len(totals)):
        totals[index] = _ZERO
    for place in range(len(votes)):
        votes[place] = _ZERO
    affinities = state.memory.affinities[state.counters[TABLE], row, : state.counters[FILLED]]
    best = UNUSABLE
    for slot in range(len(affinities)):
        best = max(best, affinities[slot])
    for slot in range(len(affinities)):
        exponent = _SHARPNESS * (affinities[slot] - best)
        if exponent > _NEGLIGIBLE and affinities[slot] >= _ZERO:
            _cast_votes(state, layer, slot, np.float32(math.exp(exponent)), votes, totals, num_layers, num_experts)
    for index in range(len(totals)):
        if totals[index] > _ZERO:
            part = votes[index * num_experts : (index + 1) * num_experts]
            share_to_odds(part, totals[index], state.outputs.reliance[ROWS, index])


@inner
def _cast_votes(state, layer, slot, weight, votes, totals, num_layers, num_experts):  # type: ignore[no-untyped-def]
    ids, demanded = state.memory.ids, state.memory.demanded
    for index in range(len(totals)):
        target, source = layer + state.networks.distances[index], slot
        if target >= num_layers:
            target, source = target - num_layers, state.memory.after[slot]
        if source >= 0 and demanded[target, source]:
            totals[index] += weight
            for place in range(demanded[target, source]):
                votes[index * num_experts + np.int64(ids[target, source, place])] += weight


@borrowing
def share_to_odds(votes, total, reliance):  # type: ignore[no-untyped-def]
    """Convert sums of votes, [J], to log odds of their shares of a total, 0 at the minimum, scaled by reliance; in place."""
    for expert in range(len(votes)):
        if votes[expert] > _ZERO:
            share = min(max(float(votes[expert] / total), _LEAST), _GREATEST)
            votes[expert] = reliance * np.float32(0.25 * (math.log(share / (1.0 - share)) - _LEAST_ODDS))
