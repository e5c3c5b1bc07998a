"""When a block's predictions come to be known, as the compiled cache and the recall take them (`Predictions.moments`)."""

import numpy as np

from finemoe.cache.prefetch_queue import prefetch_priorities
from finemoe.policies.predictions import Predictions


def targets_of(predictions: Predictions, num_layers: int) -> np.ndarray:
    """The event that each prediction is about, [n], or -1 where it came no earlier than that event's gate."""
    events = predictions.moments // 2
    targets = events - events % num_layers + predictions.layers
    return np.where(2 * targets + 1 > predictions.moments, targets, -1)


def by_moment(predictions: Predictions, num_events: int, num_layers: int) -> tuple[np.ndarray, ...]:
    """(update_begins, update_layers, update_rows, rows, prefetch_begins, prefetches) as in simulation.block.Events.

    Prefetches of a moment are ordered by priority, equal ones as they were asked for (section 4.5).
    """
    num_moments = 2 * num_events
    updates = np.bincount(predictions.moments, minlength=num_moments)
    owners, experts = np.nonzero(predictions.selected)
    moments, layers = predictions.moments[owners], predictions.layers[owners]
    current = np.where(moments % 2 == 1, moments // 2 % num_layers, -1)
    probabilities = predictions.probabilities[owners, experts].astype(np.float64)
    order = np.lexsort((-prefetch_priorities(probabilities, layers, current), moments))
    loads = np.bincount(moments, minlength=num_moments)
    return (
        np.concatenate([[0], np.cumsum(updates)]).astype(np.int64),
        predictions.layers,
        np.arange(len(predictions.layers)),
        predictions.probabilities,
        np.concatenate([[0], np.cumsum(loads)]).astype(np.int64),
        (layers * predictions.probabilities.shape[1] + experts)[order],
    )
