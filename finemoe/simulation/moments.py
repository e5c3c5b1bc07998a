"""Demands and predictions, moment by moment (see Predictions), in the form that compiled replays and the recall take."""

import numpy as np

from finemoe.cache.prefetch_queue import prefetch_priorities
from finemoe.policies.predictions import Predictions
from finemoe.simulation.kernel_inputs import Events


def targets_of(predictions: Predictions, num_layers: int) -> np.ndarray:
    """The event that each prediction is for, [n], or -1 if it came no earlier than that event's gate."""
    events = predictions.moments // 2
    targets = events - events % num_layers + predictions.layers
    return np.where(2 * targets + 1 > predictions.moments, targets, -1)


def events_of(
    num_layers: int,
    begins: np.ndarray,
    demanded: np.ndarray,
    next_use: np.ndarray,
    predictions: Predictions,
    is_streamed: np.ndarray,
) -> Events:
    """A block's layer events with the predictions between them.

    Prefetches of a moment are ordered by priority, equal ones in the order of the request (section 4.5).

    Args:
        begins, demanded, next_use: as in Events. is_streamed: [n] of each iteration.
    """
    layers = np.arange(len(begins) - 1) % num_layers
    num_moments = 2 * len(layers)
    owners, experts = np.nonzero(predictions.selected)
    moments, wanted = predictions.moments[owners], predictions.layers[owners]
    current = np.where(moments % 2 == 1, moments // 2 % num_layers, -1)
    probabilities = predictions.probabilities[owners, experts].astype(np.float64)
    update_begins, prefetch_begins = _begins(predictions.moments, num_moments), _begins(moments, num_moments)
    order = np.lexsort((-prefetch_priorities(probabilities, wanted, current), moments))
    return Events(
        layers=layers,
        is_start=layers == 0,
        begins=begins,
        demanded=demanded,
        next_use=next_use,
        update_begins=update_begins,
        update_layers=predictions.layers,
        update_rows=np.arange(len(predictions.layers)),
        rows=predictions.probabilities,
        prefetch_begins=prefetch_begins,
        prefetches=(wanted * predictions.probabilities.shape[1] + experts)[order],
        streams=np.repeat(is_streamed, num_layers) if is_streamed.any() else is_streamed[:0],
    )


def _begins(moments: np.ndarray, num_moments: int) -> np.ndarray:
    """Where the items of each moment begin in a list ordered by moment, and the end, [num_moments + 1]."""
    return np.concatenate([[0], np.cumsum(np.bincount(moments, minlength=num_moments))]).astype(np.int64)
