"""Policies: one file per system of the paper, the same methods in the same order; the registry by which they are chosen."""

import inspect
from typing import Any

from finemoe.errors import FinemoeError
from finemoe.policies.base import Policy, PolicySetup
from finemoe.policies.deepspeed_inference import DeepSpeedInference
from finemoe.policies.finemoe import FineMoE
from finemoe.policies.mixtral_offloading import MixtralOffloading
from finemoe.policies.moe_infinity import MoEInfinity
from finemoe.policies.no_offload import NoOffload
from finemoe.policies.on_demand import OnDemand
from finemoe.policies.oracle import Oracle
from finemoe.policies.promoe import ProMoE

POLICIES: dict[str, type[Policy]] = {
    "deepspeed-inference": DeepSpeedInference,
    "finemoe": FineMoE,
    "mixtral-offloading": MixtralOffloading,
    "moe-infinity": MoEInfinity,
    "no-offload": NoOffload,
    "on-demand": OnDemand,
    "oracle": Oracle,
    "promoe": ProMoE,
}
LIVE_POLICIES = sorted(name for name, policy in POLICIES.items() if not policy.needs_future)


def make_policy(name: str, setup: PolicySetup, is_replay: bool = False, **options: Any) -> Policy:
    """The policy of that name.

    Args:
        is_replay: whether the future is known. options: the system's own, such as promoe's `predictor`.
    Raises:
        FinemoeError: no policy has that name or such an option, or it must know the future.
    """
    if name not in POLICIES:
        raise FinemoeError(f"unknown policy {name!r}; known: {', '.join(sorted(POLICIES) if is_replay else LIVE_POLICIES)}")
    policy = POLICIES[name]
    if policy.needs_future and not is_replay:
        raise FinemoeError(f"policy {name!r} must know the future; it runs in finemoe.replay only")
    known = [option for option in inspect.signature(policy).parameters if option != "setup"]
    if unknown := sorted(set(options) - set(known)):
        raise FinemoeError(f"policy {name!r} has no option {unknown[0]!r}; its own are: {', '.join(known) or 'none'}")
    return policy(setup, **options)
