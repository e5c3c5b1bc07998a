"""The compiled memory of what tokens demanded wherever they occurred: it predicts a token's experts before any gate fires."""

import math

import numpy as np

from finemoe.compiling import borrowing
from finemoe.maps import forecast_rows, forecast_state
from finemoe.maps.forecast_rows import place_asked, share_to_odds
from finemoe.maps.forecast_state import (
    ALWAYS,
    LEARNS,
    NEWEST,
    NOBODY,
    NONE,
    NUM_ASKED,
    NUM_KEPT,
    NUM_ROWS,
    TOKENS,
    TOP_K,
    inner,
)
from finemoe.stale_kernels import forget_stale_kernels

forget_stale_kernels(__file__, forecast_rows.__file__, forecast_state.__file__)
_DOUBT = np.float32(0.5)  # in occurrences: pseudo-count for what has not been seen
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_SURE = 1e-6  # minimum distance of a probability from 0 and 1 when its odds are taken


@inner
def place_tokens(state, tokens):  # type: ignore[no-untyped-def]
    """Record the tokens of a new iteration's rows; tokens [B] as `TokenDirectory.places` gives them, or [0]."""
    counters, mine = state.counters, state.tokens
    for row in range(len(tokens)):
        if tokens[row] <= NEWEST:
            mine.heard[NEWEST - tokens[row]] = 0
    for place in range(counters[NUM_KEPT]):
        token = tokens[state.memory.numbers[place]] if len(tokens) == counters[NUM_ROWS] else NONE
        token = NEWEST - token if token <= NEWEST else token
        mine.known[place] = token
        if token >= 0 and counters[LEARNS] == ALWAYS:
            mine.places[place] = mine.heard[token] % mine.experts.shape[1]
            mine.heard[token] += 1
            forget_occurrence(mine.experts[token, mine.places[place]])
    for row in range(counters[NUM_ASKED]):
        mine.asked[row] = mine.known[place_asked(counters, row)]


@borrowing
def forget_occurrence(experts):  # type: ignore[no-untyped-def]
    """Clear an occurrence; experts [L, K]."""
    for layer in range(experts.shape[0]):
        for place in range(experts.shape[1]):
            experts[layer, place] = NOBODY


@inner
def remember_tokens(state, layer):  # type: ignore[no-untyped-def]
    """Store what this iteration's tokens have just demanded of a layer."""
    mine = state.tokens
    for place in range(state.counters[NUM_KEPT] if state.counters[LEARNS] == ALWAYS else 0):
        if mine.known[place] >= 0:
            slot = state.memory.slots[place]
            ids, count = state.memory.ids[layer, slot], state.memory.demanded[layer, slot]
            experts = mine.experts[mine.known[place], mine.places[place], layer]
            for entry in range(len(experts)):
                experts[entry] = ids[entry] if entry < count else NOBODY


@inner
def count_token_votes(state, layer, row):  # type: ignore[no-untyped-def]
    """Votes of a row's token for the layers ahead that it has yet to pass, as log odds like those of `count_votes`."""
    num_layers, num_experts = state.networks.demands.shape
    votes, token = state.answers.token_votes[layer, row], state.tokens.asked[row]
    for place in range(len(votes)):
        votes[place] = _ZERO
    for index in range(len(state.networks.distances) if token >= 0 else 0):
        target = layer + state.networks.distances[index]
        if target < num_layers:
            part = votes[index * num_experts : (index + 1) * num_experts]
            tell_token(state, token, target, state.outputs.reliance[TOKENS, index], part)


@inner
def tell_token(state, token, layer, reliance, votes):  # type: ignore[no-untyped-def]
    """Log odds of what a token demanded of a layer, 0 at the minimum, scaled by their reliance; votes [J], zeros on entry."""
    mine, total = state.tokens, _ZERO
    for place in range(min(mine.heard[token], mine.experts.shape[1])):
        experts = mine.experts[token, place, layer]
        total += _ONE if experts[0] != NOBODY else _ZERO
        for entry in range(len(experts)):
            if experts[entry] != NOBODY:
                votes[np.int64(experts[entry])] += _ONE
    if total > _ZERO:
        prior = _DOUBT * np.float32(min(state.counters[TOP_K] / len(votes), 1.0))
        for expert in range(len(votes)):
            votes[expert] += prior if votes[expert] > _ZERO else _ZERO
        share_to_odds(votes, total + _DOUBT, reliance)


@inner
def learn_token_gains(state, layer, row, errors, rate):  # type: ignore[no-untyped-def]
    """One gradient step from the errors of the probabilities, [Q]."""
    gains, votes = state.outputs.token_gains[layer], state.answers.token_votes[layer, row]
    for place in range(len(gains)):
        gains[place] -= rate * errors[place] * votes[place]


@inner
def foretell_by_token(state, layer, row, probs):  # type: ignore[no-untyped-def]
    """Update the forecast of one of the first layers, [J], with what the row's token demanded of it before."""
    votes, made, token = state.tokens.votes[layer, row], state.tokens.probs[layer, row], state.tokens.asked[row]
    for expert in range(len(votes)):
        votes[expert] = _ZERO
    if token >= 0:
        tell_token(state, token, layer, state.outputs.reliance[TOKENS, 0], votes)
    for expert in range(len(probs)):
        if votes[expert] != _ZERO:
            sure = min(max(float(probs[expert]), _SURE), 1.0 - _SURE)
            odds = math.log(sure / (1.0 - sure)) + float(state.tokens.gains[layer, expert] * votes[expert])
            probs[expert] = np.float32(1.0 / (1.0 + math.exp(-odds)))
        made[expert] = probs[expert]


@inner
def learn_first_gains(state, layer, rate):  # type: ignore[no-untyped-def]
    """After one of the first layers has run, turn its forecast, [S, J], into errors and take a gradient step on the gains."""
    for row in range(state.counters[NUM_ASKED] if state.counters[LEARNS] == ALWAYS else 0):
        slot = state.memory.asked[row]
        for place in range(state.memory.demanded[layer, slot]):
            state.tokens.probs[layer, row, np.int64(state.memory.ids[layer, slot, place])] -= _ONE
        for expert in range(state.tokens.gains.shape[1] if state.memory.demanded[layer, slot] else 0):
            error = state.tokens.probs[layer, row, expert]
            state.tokens.gains[layer, expert] -= rate * error * state.tokens.votes[layer, row, expert]
