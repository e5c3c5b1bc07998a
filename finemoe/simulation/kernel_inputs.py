"""A block of layer events in the form that compiled replays take."""

from typing import NamedTuple

import numpy as np

_NEVER = np.zeros(0, dtype=np.bool_)


class Events(NamedTuple):
    """Layer events in order, E of them.

    Attributes:
        layers: [E] the MoE layer of each event. is_start: [E] whether it begins an iteration.
        begins, demanded: the demanded experts of event e are demanded[begins[e]:begins[e + 1]], ascending ids within the layer.
        next_use: for each entry of `demanded`, the number of the next event that demands it (only Belady reads it).
        update_begins, update_layers, update_rows, rows: predictions that become known before (2e) and after (2e + 1) the demand
            of event e. For u in update_begins[2e]:update_begins[2e + 1], the distribution rows[update_rows[u]] predicts layer
            update_layers[u].
        prefetch_begins, prefetches: flat ids (layer·J + expert) requested at those moments, in order.
        streams: [E] whether the event is of a streamed iteration (`cache.streaming`), or [0] if none is.
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
    streams: np.ndarray = _NEVER

    def part(self, is_mine: np.ndarray) -> "Events":
        """The part that concerns one device; is_mine: [L·J] whether an expert belongs to that device."""
        num_experts = self.rows.shape[1]
        owners = np.repeat(np.arange(len(self.layers)), np.diff(self.begins))
        demanded = is_mine[self.layers[owners] * num_experts + self.demanded]
        prefetched = is_mine[self.prefetches]
        return self._replace(
            begins=_counted(demanded)[self.begins],
            demanded=self.demanded[demanded],
            next_use=self.next_use[demanded],
            prefetch_begins=_counted(prefetched)[self.prefetch_begins],
            prefetches=self.prefetches[prefetched],
        )


class Durations(NamedTuple):
    """Durations in a block of events, in seconds.

    Attributes:
        before: [E] from the end of the previous layer to the gate: attention, norms, router, overhead.
        expert: computation of each entry of `Events.demanded`. after: [E] what follows the experts, including the head after the
            last layer.
        search: [2E] the policy's own work at a moment (numbered as in `Events`), before the experts it requests can be loaded.
        earliest: [E] earliest start of an iteration that begins with this event.
    """

    before: np.ndarray
    expert: np.ndarray
    after: np.ndarray
    search: np.ndarray
    earliest: np.ndarray


def _counted(flags: np.ndarray) -> np.ndarray:
    """Number of set flags before each position and at the end, [n + 1]."""
    return np.concatenate([[0], np.cumsum(flags)]).astype(np.int64)
