"""The attachment point at which measurements change an engine."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from finemoe.runtime.lean import lean_forward

# (module, source, hidden_states, selected, top_k_index, top_k_weights), arguments of `lean_forward`; returns [T, H].
Compute = Callable[..., torch.Tensor]


class Probe:
    """An engine's attachment point for measurements; by default it changes nothing.

    Attributes:
        compute: computes the experts of layers with a common class (see `lean`) from the weights that it requests.
        always_accounts: account, publish and search even if every expert is resident.
    """

    def __init__(self) -> None:
        self.compute: Compute = lean_forward
        self.always_accounts = False

    @contextmanager
    def computing_with(self, compute: Compute) -> Iterator[None]:
        """Replace what computes the experts inside the `with` block, for example by nothing at all."""
        before, self.compute = self.compute, compute
        try:
            yield
        finally:
            self.compute = before

    @contextmanager
    def accounting(self) -> Iterator[None]:
        """Account for everything inside the `with` block."""
        before, self.always_accounts = self.always_accounts, True
        try:
            yield
        finally:
            self.always_accounts = before
