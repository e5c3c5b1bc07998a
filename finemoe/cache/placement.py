"""Expert parallelism: assignment of experts to devices, round-robin over all layers (section 5)."""

from collections.abc import Sequence

import numpy as np


def owners_of(counts: Sequence[int], num_devices: int) -> np.ndarray:
    """Index of each expert's device, [L, J] (J of the widest layer); counts: number of experts of every layer."""
    owners = np.zeros((len(counts), max(counts)), dtype=np.int64)
    numbers = np.arange(sum(counts)) % num_devices
    first = 0
    for layer, count in enumerate(counts):
        owners[layer, :count] = numbers[first : first + count]
        first += count
    return owners
