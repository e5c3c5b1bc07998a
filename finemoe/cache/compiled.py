"""The expert cache over a whole trace, compiled: the same accounting as ExpertCache and the eviction rules, event by event.

Loads are instant (DESIGN 4, `hardware=None`), so that an expert is absent or resident and nothing is late. State is kept between
blocks of events, which bounds memory however long a trace is. tests/cache/test_compiled.py holds it against the readable classes.
"""

from dataclasses import dataclass, replace

import numpy as np

from finemoe.cache.eviction.least_stale_interval import NEWEST_SHARE
from finemoe.cache.eviction.lfu_aged import DECAY
from finemoe.compiling import njit

RULE_CODES = {
    "lru": 0,
    "lfu": 1,
    "lfu-aged": 2,
    "lfru": 3,
    "least-stale": 4,
    "least-stale-interval": 5,
    "finemoe": 6,
    "belady": 7,
}
FREQUENCY, LAST_VISIT, LAST_PASS, LAST_TURN, NEXT_USE = range(5)
SCORE, INTERVAL, EXPECTED = range(3)
RESIDENT, UNDEMANDED, AWAITING, RUNNING, LOADING = range(5)
TIME, PASS, LAST_LAYER, HELD, DEMAND_LOADS, PREFETCH_LOADS, WASTED, USEFUL, NUM_RUNNING = range(9)

# For functions that only index arrays which their callers own: Numba's counting of references took 60 % of a replay's time.
borrowing = njit(cache=True, _nrt=False)


@dataclass(frozen=True)
class Events:
    """A block of layer events in order, E of them.

    Attributes:
        layers: [E] which MoE layer runs. is_start: [E] whether it begins an iteration.
        begins, demanded: the demanded experts of event e are demanded[begins[e]:begins[e + 1]], ascending ids within the layer.
        next_use: for each entry of `demanded`, the number of the next event that demands it (only Belady reads it).
        update_begins, update_layers, update_rows, rows: predictions that come to be known before (2e) and after (2e + 1) the
            demand of event e: expected[update_layers[u]] = rows[update_rows[u]] for u in update_begins[2e]:update_begins[2e + 1].
        prefetch_begins, prefetches: flat ids (layer·J + expert) loaded then, in order.
    """

    layers: np.ndarray
    is_start: np.ndarray
    begins: np.ndarray
    demanded: np.ndarray
    next_use: np.ndarray
    update_begins: np.ndarray
    update_layers: np.ndarray
    update_rows: np.ndarray
    rows: np.ndarray
    prefetch_begins: np.ndarray
    prefetches: np.ndarray

    def part(self, is_mine: np.ndarray) -> "Events":
        """What of it concerns one device; is_mine: [L·J] whether an expert is that device's."""
        num_experts = self.rows.shape[1]
        owners = np.repeat(np.arange(len(self.layers)), np.diff(self.begins))
        demanded = is_mine[self.layers[owners] * num_experts + self.demanded]
        prefetched = is_mine[self.prefetches]
        return replace(
            self,
            begins=_counted(demanded)[self.begins],
            demanded=self.demanded[demanded],
            next_use=self.next_use[demanded],
            prefetch_begins=_counted(prefetched)[self.prefetch_begins],
            prefetches=self.prefetches[prefetched],
        )


def _counted(flags: np.ndarray) -> np.ndarray:
    """How many flags are set before each place and at the end, [n + 1]."""
    return np.concatenate([[0], np.cumsum(flags)]).astype(np.int64)


class CompiledCache:
    """One device's cache under one eviction rule.

    Args:
        rule: a name in RULE_CODES. num_layers, num_experts: L, J. num_slots: capacity in experts.
    """

    def __init__(self, rule: str, num_layers: int, num_experts: int, num_slots: int) -> None:
        size = num_layers * num_experts
        self._code, self._num_experts = RULE_CODES[rule], num_experts
        self._ints = np.zeros((5, size), dtype=np.int64)
        self._ints[FREQUENCY] = 1
        self._ints[LAST_PASS] = self._ints[LAST_TURN] = -1
        self._floats = np.zeros((3, size), dtype=np.float64)
        self._floats[INTERVAL], self._floats[EXPECTED] = num_experts, np.float32(1.0 / num_experts)
        self._flags = np.zeros((5, size), dtype=np.bool_)
        self._turns = np.zeros(num_layers, dtype=np.int64)
        self._scalars = np.zeros(9, dtype=np.int64)
        self._running = np.zeros(num_experts, dtype=np.int64)
        self._scalars[LAST_LAYER] = -1
        self._held = np.zeros(num_slots, dtype=np.int64)

    def hold(self, experts: np.ndarray) -> None:
        """Put experts (flat ids) into free slots, before anything runs; that counts as no load."""
        self._held[: len(experts)] = experts
        self._flags[RESIDENT, experts] = True
        self._scalars[HELD] = len(experts)

    def foresee(self, first_uses: np.ndarray) -> None:
        """When every expert is demanded first, [L·J] event numbers (for Belady)."""
        self._ints[NEXT_USE] = first_uses

    def run(self, events: Events) -> np.ndarray:
        """Go through a block of events.

        Returns:
            [E, 4]: hits, loads on demand, loads ahead, and prefetched experts evicted unused, of each event.
        """
        outcome = np.zeros((len(events.layers), 4), dtype=np.int64)
        run_events(
            *(self._code, self._num_experts, events.layers, events.is_start, events.begins, events.demanded, events.next_use),
            *(events.update_begins, events.update_layers, events.update_rows, events.rows),
            *(events.prefetch_begins, events.prefetches),
            *(self._ints, self._floats, self._flags, self._turns, self._scalars, self._held, self._running, outcome),
        )
        return outcome

    @property
    def num_useful(self) -> int:
        """Prefetched experts that were demanded while resident."""
        return int(self._scalars[USEFUL])

    @property
    def num_unused_resident(self) -> int:
        """Prefetched experts that are resident and were not demanded so far."""
        return int(np.count_nonzero(self._flags[RESIDENT] & self._flags[UNDEMANDED]))


@njit(cache=True)
def run_events(  # type: ignore[no-untyped-def]
    rule,
    num_experts,
    layers,
    is_start,
    begins,
    demanded,
    next_use,
    update_begins,
    update_layers,
    update_rows,
    rows,
    prefetch_begins,
    prefetches,
    ints,
    floats,
    flags,
    turns,
    scalars,
    held,
    running,
    outcome,
):
    """The loop over events; arguments as in Events and CompiledCache."""
    for event in range(layers.shape[0]):
        layer = layers[event]
        base = layer * num_experts
        demand_loads, prefetch_loads, wasted = scalars[DEMAND_LOADS], scalars[PREFETCH_LOADS], scalars[WASTED]
        if is_start[event]:
            for place in range(scalars[HELD]):
                flags[AWAITING, held[place]] = False
            end_layer(flags, scalars, running)
            update_expected(2 * event, -1, num_experts, rule, update_begins, update_layers, update_rows, rows, floats)
            _prefetch(2 * event, -1, num_experts, rule, prefetch_begins, prefetches, ints, floats, flags, turns, scalars, held)
        end_layer(flags, scalars, running)
        experts = demanded[begins[event] : begins[event + 1]]
        for expert in range(num_experts):
            flags[AWAITING, base + expert] = False
        scalars[NUM_RUNNING] = experts.shape[0]
        for index in range(experts.shape[0]):
            flat = base + experts[index]
            running[index] = flat
            flags[RUNNING, flat] = True
            if flags[RESIDENT, flat]:
                outcome[event, 0] += 1
                if flags[UNDEMANDED, flat]:
                    scalars[USEFUL] += 1
            flags[UNDEMANDED, flat] = False
        visit(layer, num_experts, experts, rule, ints, floats, turns, scalars)
        if rule == 7:
            for index in range(begins[event], begins[event + 1]):
                ints[NEXT_USE, base + demanded[index]] = next_use[index]
        _admit_all(layer, num_experts, experts, rule, ints, floats, flags, turns, scalars, held)
        update_expected(2 * event + 1, layer, num_experts, rule, update_begins, update_layers, update_rows, rows, floats)
        _prefetch(2 * event + 1, layer, num_experts, rule, prefetch_begins, prefetches, ints, floats, flags, turns, scalars, held)
        outcome[event, 1] = scalars[DEMAND_LOADS] - demand_loads
        outcome[event, 2] = scalars[PREFETCH_LOADS] - prefetch_loads
        outcome[event, 3] = scalars[WASTED] - wasted


@borrowing
def end_layer(flags, scalars, running):  # type: ignore[no-untyped-def]
    for index in range(scalars[NUM_RUNNING]):
        flags[RUNNING, running[index]] = False
    scalars[NUM_RUNNING] = 0


@borrowing
def update_expected(when, layer, num_experts, rule, update_begins, update_layers, update_rows, rows, floats):  # type: ignore[no-untyped-def]
    for update in range(update_begins[when], update_begins[when + 1]):
        base = update_layers[update] * num_experts
        for expert in range(num_experts):
            floats[EXPECTED, base + expert] = rows[update_rows[update], expert]


@njit(cache=True)
def _prefetch(when, layer, num_experts, rule, prefetch_begins, prefetches, ints, floats, flags, turns, scalars, held):  # type: ignore[no-untyped-def]
    wanted = prefetches[prefetch_begins[when] : prefetch_begins[when + 1]]
    is_absent = np.empty(wanted.shape[0], dtype=np.bool_)  # when they are asked for, as the engine's queue takes them
    for index in range(wanted.shape[0]):
        is_absent[index] = not flags[RESIDENT, wanted[index]]
        if not is_absent[index] and wanted[index] // num_experts > layer:
            flags[AWAITING, wanted[index]] = True
    for index in range(wanted.shape[0]):
        flat = wanted[index]
        if not is_absent[index] or flags[RESIDENT, flat] or flat // num_experts < layer:
            continue
        if _make_resident(flat, layer, num_experts, rule, ints, floats, flags, turns, scalars, held):
            scalars[PREFETCH_LOADS] += 1
            flags[UNDEMANDED, flat] = True
            flags[AWAITING, flat] = flat // num_experts != layer


@borrowing
def _admit_all(layer, num_experts, experts, rule, ints, floats, flags, turns, scalars, held):  # type: ignore[no-untyped-def]
    """Forced admission in ascending order; a set larger than the cache streams through (DESIGN 4)."""
    base = layer * num_experts
    for position in range(experts.shape[0]):
        flat = base + experts[position]
        if flags[RESIDENT, flat]:
            continue
        if not _make_resident(flat, layer, num_experts, rule, ints, floats, flags, turns, scalars, held):
            break
        scalars[DEMAND_LOADS] += 1
    for position in range(experts.shape[0]):
        flat = base + experts[position]
        if flags[RESIDENT, flat]:
            continue
        for used in range(position):
            flags[RUNNING, base + experts[used]] = False
        if not _make_resident(flat, layer, num_experts, rule, ints, floats, flags, turns, scalars, held):
            for ahead in range(experts.shape[0] - 1, position, -1):
                if flags[RESIDENT, base + experts[ahead]]:
                    flags[RUNNING, base + experts[ahead]] = False
                    break
            _make_resident(flat, layer, num_experts, rule, ints, floats, flags, turns, scalars, held)
        scalars[DEMAND_LOADS] += 1


@borrowing
def _make_resident(flat, layer, num_experts, rule, ints, floats, flags, turns, scalars, held):  # type: ignore[no-untyped-def]
    is_done = take_slot(flat, layer, num_experts, rule, ints, floats, flags, turns, scalars, held)
    if is_done:
        flags[RESIDENT, flat] = True
    return is_done


@borrowing
def take_slot(flat, layer, num_experts, rule, ints, floats, flags, turns, scalars, held):  # type: ignore[no-untyped-def]
    """Give an absent expert a slot, evicting if none is free; False where every slot holds an expert that must stay."""
    if scalars[HELD] < held.shape[0]:
        place = scalars[HELD]
        scalars[HELD] += 1
    else:
        place = _victim(layer, num_experts, rule, ints, floats, flags, turns, scalars, held)
        if place < 0:
            return False
        evicted = held[place]
        scalars[WASTED] += flags[UNDEMANDED, evicted]
        for flag in (RESIDENT, UNDEMANDED, AWAITING):
            flags[flag, evicted] = False
    held[place] = flat
    return True


@borrowing
def _victim(layer, num_experts, rule, ints, floats, flags, turns, scalars, held):  # type: ignore[no-untyped-def]
    """Place of the least worthy expert that may go: not awaited if any such is left; ties as in EvictionRule.victim."""
    num_layers, best, least, is_best_awaited = turns.shape[0], -1, 0.0, True
    for place in range(held.shape[0]):
        flat = held[place]
        worth = _worth(flat, num_experts, num_layers, rule, ints, floats, turns, scalars)
        if worth > least and not is_best_awaited:  # most of them, awaited or not
            continue
        is_awaited = flags[AWAITING, flat]
        if flags[RUNNING, flat] or flags[LOADING, flat] or (is_awaited and not is_best_awaited):
            continue
        if (
            best < 0
            or is_awaited != is_best_awaited
            or worth < least
            or (worth == least and _goes_first(flat, held[best], layer, num_experts, num_layers, ints))
        ):
            best, least, is_best_awaited = place, worth, is_awaited
    return best


@borrowing
def _goes_first(flat, other, layer, num_experts, num_layers, ints):  # type: ignore[no-untyped-def]
    """Which of two equally worthy experts goes: the less frequent, else that of the layer farther away, else the lower id."""
    if ints[FREQUENCY, flat] != ints[FREQUENCY, other]:
        return ints[FREQUENCY, flat] < ints[FREQUENCY, other]
    until = (flat // num_experts - layer - 1) % num_layers
    other_until = (other // num_experts - layer - 1) % num_layers
    return until > other_until or (until == other_until and flat < other)


@borrowing
def _worth(flat, num_experts, num_layers, rule, ints, floats, turns, scalars):  # type: ignore[no-untyped-def]
    """What it is worth to keep an expert: each rule's `worth`."""
    if rule == 0:
        return float(ints[LAST_VISIT, flat])
    if rule == 1:
        return float(ints[FREQUENCY, flat])
    if rule == 2:
        return floats[SCORE, flat]
    if rule == 3:
        return ints[FREQUENCY, flat] / (scalars[TIME] + 1 - ints[LAST_VISIT, flat])
    if rule == 4:
        until = (flat // num_experts - scalars[LAST_LAYER] - 1) % num_layers
        is_fresh = ints[LAST_PASS, flat] == scalars[PASS]
        return float(is_fresh * num_layers + (num_layers - 1 - until))
    if rule == 5:
        turn, last = turns[flat // num_experts], ints[LAST_TURN, flat]
        return turn - ((last if last >= 0 else turn) + floats[INTERVAL, flat])
    if rule == 6:
        return floats[EXPECTED, flat] * ints[FREQUENCY, flat]
    return -float(ints[NEXT_USE, flat])


@borrowing
def visit(layer, num_experts, experts, rule, ints, floats, turns, scalars):  # type: ignore[no-untyped-def]
    base = layer * num_experts
    scalars[TIME] += 1
    turns[layer] += 1
    scalars[PASS] += layer <= scalars[LAST_LAYER]
    scalars[LAST_LAYER] = layer
    if rule == 2:
        for expert in range(num_experts):
            floats[SCORE, base + expert] *= DECAY
    for expert in experts:
        flat = base + expert
        ints[FREQUENCY, flat] += 1
        ints[LAST_VISIT, flat] = scalars[TIME]
        ints[LAST_PASS, flat] = scalars[PASS]
        floats[SCORE, flat] += 1.0
        if ints[LAST_TURN, flat] >= 0:
            newest = turns[layer] - ints[LAST_TURN, flat]
            floats[INTERVAL, flat] += NEWEST_SHARE * (newest - floats[INTERVAL, flat])
        ints[LAST_TURN, flat] = turns[layer]
