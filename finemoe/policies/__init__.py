"""Policies: one file per system of the paper, the same methods in the same order; the registry by which they are chosen."""

from typing import Any

from finemoe.errors import FinemoeError
from finemoe.policies.base import Policy, PolicySetup
from finemoe.policies.finemoe import FineMoE
from finemoe.policies.on_demand import OnDemand

POLICIES: dict[str, type[Policy]] = {"finemoe": FineMoE, "on-demand": OnDemand}


def make_policy(name: str, setup: PolicySetup, **options: Any) -> Policy:
    """The policy of that name.

    Raises:
        FinemoeError: no policy has that name, or it has no such option.
    """
    if name not in POLICIES:
        raise FinemoeError(f"unknown policy {name!r}; known: {', '.join(sorted(POLICIES))}")
    return POLICIES[name](setup, **options)
