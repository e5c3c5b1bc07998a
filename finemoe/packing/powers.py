"""Powers of two from the exponents in which block scales are kept."""

from functools import cache

import torch

_BIAS = 127


@cache
def _table(device: torch.device) -> torch.Tensor:
    """2^(e - 127) for every byte e, [256] float32, from the device's own power function."""
    exponents = torch.arange(256, dtype=torch.int32, device=device) - _BIAS
    return torch.pow(2.0, exponents)


def powers_of_two(exponents: torch.Tensor) -> torch.Tensor:
    """2^(e - 127), float32, of the exponents e, uint8."""
    return _table(exponents.device)[exponents.int()]
