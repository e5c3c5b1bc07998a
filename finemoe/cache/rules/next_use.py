"""Next use: evict the expert whose next use, as far as it can be forecast, is the least likely and the farthest away.

An expert can be used only when its layer runs, so time is counted in turns of that layer. After each turn of a layer, the rule
forecasts two values for each of its experts: p, the probability that the layer's next turn uses it, and v, its worth if that turn
does not. A use is worth 1 in the turn in which it occurs and `DISCOUNT` times as much in every turn before; keeping an expert is
worth p + (1 - p) · DISCOUNT · v, less while the layer is still far away. One discount serves all cache sizes: what a large cache
evicts is unlikely to be used for many turns, and for such experts v tells which will be used first.

Both values come from logistic models that learn online from demands: p from the outcomes, v from the forecast one turn later
(temporal differences). They start from the expert's decayed frequency and add evidence from the latest sets of the same layer and
of the layers that ran before it: for each of these layers, a table holds how the use of one expert predicts the next use of
another. One token ahead, frequencies predict 48 % of what a layer of gpt-oss-20b demands, and these models 61 %.

If the policy has predicted the next turn, its probability is used as p.

All constants were chosen on two of five folds of the gpt-oss requests; small changes of any of them matter little. The following
were left out because they gave no gain there: several half-lives, use in the last turns, time since the last use, learned weights
of the frequencies, and the gain per slot and layer instead of the discounted one. `finemoe.artifact.analysis.next_use` measures
the contribution of each part.
"""

import math

import numpy as np

from finemoe.cache import state
from finemoe.cache.rules.base import EvictionRule
from finemoe.cache.state import LAST_LAYER, Statistics
from finemoe.compiling import njit
from finemoe.stale_kernels import forget_stale_kernels

forget_stale_kernels(__file__, state.__file__)
DISCOUNT = 0.6
DECAY = 2.0 ** (-1.0 / 15.0)  # of frequencies: half after 15 turns
LEAST = 0.005  # minimum distance of frequencies from 0 and 1
FREQUENCY_SHARE = 0.5  # weight of their log-odds in both models: enough at the start; the tables learn the rest
RATE = 0.1  # learning rate
# Tables, and their rows, J each: limits that bound time and memory for layers with many experts. One table in LATER_SHARE belongs
# to v: p has 12 tables and v 4 for up to 32 experts, 3 and 1 for 128.
MOST_TABLES, MOST_ROWS, LATER_SHARE = 16, 512, 4
FIRST_GUESS = 0.1  # initial value of everything, before a layer has run
# Own rows, then the tables, those of p first. ERROR: error of a model while it learns. NEWEST, OLDER: ids of the layer's last set
# and of the one before, in the first places, terminated by -1.
FREQUENCY, COMING, LATER, ERROR, NEWEST, OLDER, TABLES = range(7)


def weigh(stats: Statistics, experts: np.ndarray, worth: np.ndarray) -> None:
    """Worth with whole turns discounted, and the part of a turn until the layer runs."""
    for place in range(len(experts)):
        coming = probability(stats, experts[place])
        value = coming + (1.0 - coming) * DISCOUNT * stats.own[LATER, experts[place]]
        worth[place] = value * nearness(stats, experts[place])


@njit(cache=True)
def layers_until(stats, flat):  # type: ignore[no-untyped-def]
    """Number of layers that run before an expert's layer does, from 0 to L - 1."""
    until = stats.layer_of[flat] - stats.clock[LAST_LAYER] - 1
    return until if until >= 0 else until + len(stats.turns)  # takes half the time of a remainder


@njit(cache=True)
def nearness(stats, flat):  # type: ignore[no-untyped-def]
    """1 for a layer that runs next, falling to DISCOUNT for one that runs a full turn later."""
    return 1.0 - (1.0 - DISCOUNT) * (layers_until(stats, flat) + 1) / len(stats.turns)


@njit(cache=True)
def probability(stats, flat):  # type: ignore[no-untyped-def]
    """Probability that the next turn of its layer uses an expert: the policy's prediction, or else the one learned here."""
    layer = stats.layer_of[flat]
    if stats.foretold[layer] == stats.turns[layer]:
        return float(stats.expected[flat])
    return stats.own[COMING, flat]


def visit(stats: Statistics, layer: int, experts: np.ndarray) -> None:
    """Let each model learn from its forecast of a turn ago, and make the next forecast."""
    own, num_experts = stats.own, stats.num_experts
    base = layer * num_experts
    num_tables = (len(own) - TABLES) // num_experts
    num_later = (num_tables + LATER_SHARE - 1) // LATER_SHARE
    num_coming = num_tables - num_later
    _note_set(own, base, num_experts, experts)

    for flat in range(base, base + num_experts):
        own[ERROR, flat] = own[COMING, flat]
        own[FREQUENCY, flat] *= DECAY
    for expert in experts:
        own[ERROR, base + expert] -= 1.0
        own[FREQUENCY, base + expert] += 1.0 - DECAY
    _learn(stats, layer, 0, num_coming)

    for flat in range(base, base + num_experts):
        frequency = own[FREQUENCY, flat]
        odds = (frequency + LEAST) / (1.0 - frequency + LEAST)
        own[COMING, flat] = own[ERROR, flat] = FREQUENCY_SHARE * math.log(odds)
    _add_scores(stats, layer, 0, num_coming, COMING)
    _add_scores(stats, layer, num_coming, num_later, ERROR)
    for flat in range(base, base + num_experts):
        coming = 1.0 / (1.0 + math.exp(-own[COMING, flat]))
        later = 1.0 / (1.0 + math.exp(-own[ERROR, flat]))
        own[ERROR, flat] = own[LATER, flat] - (coming + (1.0 - coming) * DISCOUNT * later)
        own[COMING, flat], own[LATER, flat] = coming, later
    for expert in experts:  # v concerns only experts that were not used
        own[ERROR, base + expert] = 0.0
    _learn(stats, layer, num_coming, num_later)


@njit(cache=True)
def _note_set(own, base, num_experts, experts):  # type: ignore[no-untyped-def]
    """Shift the layer's sets. A set of most experts, such as a prefill's, carries no information and is stored as empty."""
    for flat in range(base, base + num_experts):
        own[OLDER, flat] = own[NEWEST, flat]
    count = len(experts) if 2 * len(experts) <= num_experts else 0
    for place in range(count):
        own[NEWEST, base + place] = experts[place]
    own[NEWEST, base + count] = -1.0


@njit(cache=True)
def _add_scores(stats, layer, first, num_tables, into):  # type: ignore[no-untyped-def]
    """Add to the row `into` what the newest sets predict for the layer's experts. The larger a set, the less each expert counts;
    the steps of `_learn` shrink alike, so that they have the same effect for every size."""
    own, num_experts, num_layers = stats.own, stats.num_experts, len(stats.turns)
    scores = own[into, layer * num_experts : (layer + 1) * num_experts]
    tables = _tables_of(stats, layer)
    for table in range(min(num_tables, num_layers)):
        source = (layer - table) % num_layers * num_experts
        count = _count(own, NEWEST, source)
        share = 1.0 / math.sqrt(max(count, 1))
        for place in range(count):
            row = tables[first + table, int(own[NEWEST, source + place])]
            for expert in range(num_experts):
                scores[expert] += share * row[expert]


@njit(cache=True)
def _learn(stats, layer, first, num_tables):  # type: ignore[no-untyped-def]
    """One gradient step on the log loss, for the sets that the forecast was made from: by now the older ones."""
    own, num_experts, num_layers = stats.own, stats.num_experts, len(stats.turns)
    error = own[ERROR, layer * num_experts : (layer + 1) * num_experts]
    tables = _tables_of(stats, layer)
    for table in range(min(num_tables, num_layers)):
        source = (layer - table) % num_layers * num_experts
        count = _count(own, OLDER, source)
        step = RATE / math.sqrt(max(count, 1))
        for place in range(count):
            row = tables[first + table, int(own[OLDER, source + place])]
            for expert in range(num_experts):
                row[expert] -= step * error[expert]


@njit(cache=True)
def _tables_of(stats, layer):  # type: ignore[no-untyped-def]
    """A layer's tables, [tables, J, J], contiguous: in its cells of the own rows they would be N numbers apart, which a
    processor's caches read half as fast."""
    num_experts, num_layers = stats.num_experts, len(stats.turns)
    num_tables = (len(stats.own) - TABLES) // num_experts
    return stats.own[TABLES:].reshape(num_layers, num_tables, num_experts, num_experts)[layer]


@njit(cache=True)
def _count(own, sets, source):  # type: ignore[no-untyped-def]
    count = 0
    while own[sets, source + count] >= 0:
        count += 1
    return count


def own(num_experts: int) -> tuple[float, ...]:
    """Initially, nothing is learned and no set is known."""
    return rows_with_tables(min(MOST_TABLES, max(MOST_ROWS // num_experts, 2)), num_experts)


def rows_with_tables(num_tables: int, num_experts: int) -> tuple[float, ...]:
    """Initial values of the own rows, for the given number of tables."""
    return (FIRST_GUESS, FIRST_GUESS, FIRST_GUESS, 0.0, -1.0, -1.0, *[0.0] * (num_tables * num_experts))


RULE = EvictionRule(weigh, visit, own)
