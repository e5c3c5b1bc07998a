"""Policies: one file per system of the paper, the same methods in the same order; the registry by which they are chosen.

A policy from elsewhere is chosen like one of these: by a name that `register` or an entry point of the group "finemoe.policies"
gave it, or as "module:Class".
"""

import inspect
from typing import Any

from finemoe.errors import FinemoeError
from finemoe.policies.base import Policy, PolicySetup
from finemoe.policies.deepspeed_inference import DeepSpeedInference
from finemoe.policies.finemoe import FineMoE
from finemoe.policies.finemoe_plus import FinemoePlus
from finemoe.policies.mixtral_offloading import MixtralOffloading
from finemoe.policies.moe_infinity import MoEInfinity
from finemoe.policies.no_offload import NoOffload
from finemoe.policies.on_demand import OnDemand
from finemoe.policies.oracle import Oracle
from finemoe.policies.promoe import ProMoE
from finemoe.registry import Registry, derived_from

POLICIES: dict[str, type[Policy]] = {
    "deepspeed-inference": DeepSpeedInference,
    "finemoe": FineMoE,
    "finemoe-plus": FinemoePlus,
    "mixtral-offloading": MixtralOffloading,
    "moe-infinity": MoEInfinity,
    "no-offload": NoOffload,
    "on-demand": OnDemand,
    "oracle": Oracle,
    "promoe": ProMoE,
}
LIVE_POLICIES = sorted(name for name, policy in POLICIES.items() if not policy.needs_future)


_REGISTRY = Registry("policy", "finemoe.policies", derived_from(Policy), POLICIES)  # type: ignore[type-abstract]


def register(name: str, policy: type[Policy]) -> None:
    """Give a policy from elsewhere a name, in this process.

    Raises:
        FinemoeError: the name is taken, or it is no class derived from `Policy`.
    """
    _REGISTRY.register(name, policy)


def known_policies(is_replay: bool = False) -> list[str]:
    """The names that policies have, in alphabetical order; those that must know the future in a replay only."""
    only_in_replay = {name for name, policy in (POLICIES | _REGISTRY.registered).items() if policy.needs_future}
    return [name for name in _REGISTRY.names() if is_replay or name not in only_in_replay]


def policy_named(name: str, is_replay: bool = False) -> type[Policy]:
    """The class of the policy of that name, or at "module:Class".

    Raises:
        FinemoeError: there is none, it cannot be loaded, or it must know the future.
    """
    policy = _REGISTRY.find(name)
    if policy is None:
        known = ", ".join(known_policies(is_replay))
        raise FinemoeError(f"unknown policy {name!r}; known: {known}, or 'module:Class' for one of your own")
    if policy.needs_future and not is_replay:
        raise FinemoeError(f"policy {name!r} must know the future; it runs in finemoe.replay only")
    return policy


def make_policy(name: str, setup: PolicySetup, is_replay: bool = False, **options: Any) -> Policy:
    """A policy, by name or as "module:Class".

    Args:
        is_replay: whether the future is known. options: the system's own, such as promoe's `predictor`.
    Raises:
        FinemoeError: no policy has that name or such an option, it cannot be loaded, or it must know the future.
    """
    policy = policy_named(name, is_replay)
    known = [option for option in inspect.signature(policy).parameters if option != "setup"]
    if unknown := sorted(set(options) - set(known)):
        raise FinemoeError(f"policy {name!r} has no option {unknown[0]!r}; its own are: {', '.join(known) or 'none'}")
    return policy(setup, **options)
