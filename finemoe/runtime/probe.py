"""What may be changed about an engine to measure it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from finemoe.runtime.lean import lean_forward

# (module, source, hidden_states, selected, top_k_index, top_k_weights), as `lean_forward` takes them, to [T, H].
Compute = Callable[..., torch.Tensor]


class Probe:
    """An engine's seam for measurements; as it comes, it changes nothing.

    Attributes:
        compute: what computes the experts of layers whose class is common (see `lean`), from the weights that it asks for.
        always_accounts: account, publish and search also where everything is resident.
    """

    def __init__(self) -> None:
        self.compute: Compute = lean_forward
        self.always_accounts = False

    @contextmanager
    def computing_with(self, compute: Compute) -> Iterator[None]:
        """Something else computes the experts inside the `with` block, such as nothing at all."""
        before, self.compute = self.compute, compute
        try:
            yield
        finally:
            self.compute = before

    @contextmanager
    def accounting(self) -> Iterator[None]:
        """Everything is accounted for inside the `with` block."""
        before, self.always_accounts = self.always_accounts, True
        try:
            yield
        finally:
            self.always_accounts = before
