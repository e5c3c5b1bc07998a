"""Policies: one file per system of the paper, with the same methods in the same order, and the registry that finds them by name.

An external policy is selected like these: by a name given by `register` or by an entry point of the group "finemoe.policies", or
as "module:Class".
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
from finemoe.suggestions import suggestion

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
    """Give an external policy a name in this process.

    Args:
        name: a new name without a colon. policy: a class derived from `Policy`.
    Raises:
        FinemoeError: the name is taken, or the class is not derived from `Policy`.
    """
    _REGISTRY.register(name, policy)


def known_policies(is_replay: bool = False) -> list[str]:
    """Names of all policies, in alphabetical order; those that need to know the future are included only for a replay."""
    only_in_replay = {name for name, policy in (POLICIES | _REGISTRY.registered).items() if policy.needs_future}
    return [name for name in _REGISTRY.names() if is_replay or name not in only_in_replay]


def policy_named(name: str, is_replay: bool = False) -> type[Policy]:
    """The class of a policy, by name or as "module:Class".

    Raises:
        FinemoeError: there is none, it cannot be loaded, or it needs to know the future and this is not a replay.
    """
    policy = _REGISTRY.find(name)
    if policy is None:
        known = suggestion(name, known_policies(is_replay))
        raise FinemoeError(f"unknown policy {name!r}; {known}, or 'module:Class' for your own")
    if policy.needs_future and not is_replay:
        raise FinemoeError(f"policy {name!r} must know the future; it runs only in finemoe.replay")
    return policy


def make_policy(name: str, setup: PolicySetup, is_replay: bool = False, **options: Any) -> Policy:
    """Create a policy, by name or as "module:Class".

    Args:
        setup: sizes of the model and settings of the run.
        is_replay: whether the future is known.
        options: options of this policy, such as promoe's `predictor`.
    Raises:
        FinemoeError: there is no such policy or option, the policy cannot be loaded, or it needs to know the future.
    """
    policy = policy_named(name, is_replay)
    known = [option for option in inspect.signature(policy).parameters if option != "setup"]
    if unknown := sorted(set(options) - set(known)):
        raise FinemoeError(f"policy {name!r} has no option {unknown[0]!r}; its options are: {', '.join(known) or 'none'}")
    return policy(setup, **options)
