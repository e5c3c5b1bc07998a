"""The expert cache and its links in virtual time, compiled: layer events in order, with the live engine's rules (DESIGN 5 and 6).

Every device has its own slots and its own link. A link moves one expert at a time; a prefetch is chosen when the link is free, by
probability / (layer - running layer), and is dropped once its layer has come. A demanded expert that is missing is loaded at
once: it waits for the chunk that is being moved, then prefetching pauses until all demanded ones are there. Experts are computed
in ascending order on their own device, each as soon as it is there. Nothing is random: same inputs, same times.
"""

from dataclasses import dataclass

import numpy as np

from finemoe.cache.compiled import (
    EXPECTED,
    FREQUENCY,
    HELD,
    INTERVAL,
    LAST_LAYER,
    LAST_PASS,
    LAST_TURN,
    LOADING,
    NEXT_USE,
    RESIDENT,
    RULE_CODES,
    UNDEMANDED,
    USEFUL,
    Events,
)
from finemoe.simulation.links import BESIDE, NOTHING, Plan, State, run


@dataclass(frozen=True)
class Durations:
    """How long things take, in seconds.

    Attributes:
        before: [E] from the end of the layer before to the gate: attention, norms, router, overhead.
        expert: for every entry of `Events.demanded`, its computation. after: [E] what follows the experts, and after the last
            layer the head.
        search: [2E] the policy's own work before what it asks for at a moment (numbered as in `Events`) can be loaded.
        earliest: [E] an iteration that starts with this event does so no earlier.
    """

    before: np.ndarray
    expert: np.ndarray
    after: np.ndarray
    search: np.ndarray
    earliest: np.ndarray


@dataclass(frozen=True)
class Outcome:
    """What came of a block of events, E of them.

    Attributes:
        counts: [E, 5] hits, late, loads on demand, loads ahead, and prefetched experts evicted unused.
        starts, ends: [E] when the layer's turn began and when its output was there. stalls: [E] waiting for weights in between.
    """

    counts: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    stalls: np.ndarray


class Clockwork:
    """Caches and links of all devices under one eviction rule.

    Args:
        rule: a name in RULE_CODES. owners: [L, J] each expert's device. num_slots: of every device.
        load_s: one expert over its link on demand, latency included. chunk_s: one chunk of a prefetch, which a demanded load may
            have to wait for. prefetch_s: one expert ahead of demand, chunk by chunk; None: as on demand.
        waits: BESIDE, AT_GATE or AFTER_LAYER. wake_s: what it takes to go on after waiting for a load.
    """

    def __init__(
        self,
        rule: str,
        owners: np.ndarray,
        num_devices: int,
        num_slots: int,
        load_s: float,
        chunk_s: float,
        waits: int = BESIDE,
        wake_s: float = 0.0,
        prefetch_s: float | None = None,
    ) -> None:
        num_layers, num_experts = owners.shape
        ints = np.zeros((num_devices, 5, owners.size), dtype=np.int64)
        ints[:, FREQUENCY] = 1
        ints[:, LAST_PASS] = ints[:, LAST_TURN] = -1
        floats = np.zeros((num_devices, 3, owners.size))
        floats[:, INTERVAL], floats[:, EXPECTED] = num_experts, np.float32(1.0 / num_experts)
        scalars = np.zeros((num_devices, 9), dtype=np.int64)
        scalars[:, LAST_LAYER] = -1
        self._state = State(
            rule=RULE_CODES[rule],
            num_experts=num_experts,
            waits=waits,
            load_s=load_s,
            prefetch_s=load_s if prefetch_s is None else prefetch_s,
            chunk_s=chunk_s,
            wake_s=wake_s,
            owners=np.ascontiguousarray(owners.reshape(-1)),
            layers=np.repeat(np.arange(num_layers), num_experts),
            ints=ints,
            floats=floats,
            flags=np.zeros((num_devices, 5, owners.size), dtype=np.bool_),
            turns=np.zeros((num_devices, num_layers), dtype=np.int64),
            scalars=scalars,
            held=np.zeros((num_devices, num_slots), dtype=np.int64),
            link_s=np.zeros(num_devices),
            rest_s=np.zeros(num_devices),
            flying=np.full(num_devices, NOTHING),
            pending=np.zeros((num_devices, owners.size), dtype=np.int64),
            num_pending=np.zeros(num_devices, dtype=np.int64),
            urgency=np.full(owners.size, -1.0),
            clock=np.zeros(2),
            ready=np.zeros(num_experts),
        )

    def hold(self, experts: np.ndarray) -> None:
        """Put experts (flat ids) into free slots of their devices, before anything runs; that counts as no load."""
        state = self._state
        for device in range(len(state.held)):
            mine = experts[state.owners[experts] == device]
            state.held[device, : len(mine)] = mine
            state.flags[device, RESIDENT, mine] = True
            state.scalars[device, HELD] = len(mine)

    def foresee(self, first_uses: np.ndarray) -> None:
        """When every expert is demanded first, [L·J] event numbers (for Belady)."""
        self._state.ints[:, NEXT_USE] = first_uses

    def run(self, events: Events, durations: Durations) -> Outcome:
        """Go through a block of events."""
        num_events = len(events.layers)
        counts, times = np.zeros((num_events, 5), dtype=np.int64), np.zeros((num_events, 3))
        parts = (events, durations)
        plan = Plan(**{name: getattr(parts[not hasattr(events, name)], name) for name in Plan._fields})
        run(self._state, plan, counts, times)
        return Outcome(counts, times[:, 0], times[:, 1], times[:, 2])

    @property
    def num_useful(self) -> int:
        """Prefetched experts that were demanded while resident or on their way."""
        return int(self._state.scalars[:, USEFUL].sum())

    @property
    def num_unused(self) -> int:
        """Prefetched experts that hold a slot and were not demanded so far."""
        flags = self._state.flags
        return int((flags[:, UNDEMANDED] & (flags[:, RESIDENT] | flags[:, LOADING])).sum())
