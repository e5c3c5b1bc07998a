"""The state of a machine in virtual time: the caches of its devices, their links, and the clock (see clockwork.py)."""

from typing import Any, NamedTuple

import numpy as np

from finemoe.cache.prefetch_queue import NOTHING
from finemoe.cache.rules.base import EvictionRule
from finemoe.cache.state import CacheState, empty_state, hold

BESIDE, AT_GATE, AFTER_LAYER = 0, 1, 2  # inference does not wait for prefetches; waits before the layer computes; after it


class Machine(NamedTuple):
    """All state and inputs of a machine: D devices of S slots, N = L·J experts by flat id.

    Attributes:
        weigh, visit: the eviction rule.
        waits, load_s, prefetch_s, chunk_s, wake_s, resume_s, hand_over_s, hits_first: see Clockwork.
        owners: [N] each expert's device. caches: of all devices.
        link_s: [D] time up to which a link has been simulated. rest_s: [D] remaining time of its transfer in flight. flying: [D]
            the expert in flight, or NOTHING.
        clock: [3] end of the last layer, time at which the matcher is free, and the policy's share of the running layer's time.
        ready: [J] when each demanded expert of the running layer is resident, by its place in the set; see transfers.py.
        found, mine, places: [J] scratch for one device's part of a demanded set: state of each expert, its id, its place.
        ends_s, work_s: [D] scratch for the end of each device's computation, and how much of it was work.
    """

    weigh: Any
    visit: Any
    waits: int
    load_s: float
    prefetch_s: float
    chunk_s: float
    wake_s: float
    resume_s: float
    hand_over_s: float
    hits_first: bool
    owners: np.ndarray
    caches: CacheState
    link_s: np.ndarray
    rest_s: np.ndarray
    flying: np.ndarray
    clock: np.ndarray
    ready: np.ndarray
    found: np.ndarray
    mine: np.ndarray
    places: np.ndarray
    ends_s: np.ndarray
    work_s: np.ndarray


def idle_machine(
    rule: EvictionRule,
    owners: np.ndarray,
    num_devices: int,
    num_slots: int,
    waits: int,
    hits_first: bool,
    least_gain: float | None,
    load_s: float,
    prefetch_s: float,
    chunk_s: float,
    wake_s: float,
    resume_s: float,
    hand_over_s: float,
) -> Machine:
    """A machine in its initial state; arguments as in Clockwork."""
    num_layers, num_experts = owners.shape
    weigh, visit = rule.pointers()
    own = rule.own(num_experts)
    owners = np.ascontiguousarray(owners.reshape(-1))
    caches = empty_state(num_layers, num_experts, num_slots, own, waits == AFTER_LAYER, least_gain, num_devices)
    caches.is_local[:] = owners == np.arange(num_devices)[:, None]
    return Machine(
        weigh=weigh,
        visit=visit,
        waits=waits,
        load_s=load_s,
        prefetch_s=prefetch_s,
        chunk_s=chunk_s,
        wake_s=wake_s,
        resume_s=resume_s,
        hand_over_s=hand_over_s,
        hits_first=hits_first,
        owners=owners,
        caches=caches,
        link_s=np.zeros(num_devices),
        rest_s=np.zeros(num_devices),
        flying=np.full(num_devices, NOTHING),
        clock=np.zeros(3),
        ready=np.zeros(num_experts),
        found=np.zeros(num_experts, dtype=np.uint8),
        mine=np.zeros(num_experts, dtype=np.int64),
        places=np.zeros(num_experts, dtype=np.int64),
        ends_s=np.zeros(num_devices),
        work_s=np.zeros(num_devices),
    )


def hold_on_devices(machine: Machine, experts: np.ndarray) -> None:
    """Put experts (flat ids) into free slots of their devices before the run; this does not count as loads."""
    for device in range(len(machine.link_s)):
        hold(machine.caches, experts[machine.owners[experts] == device], device)
