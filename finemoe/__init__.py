"""finemoe: serve Mixture-of-Experts models whose experts do not fit in device memory; the FineMoE paper as an artifact.

The names below are imported on first use, which keeps `import finemoe` light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finemoe.advice.advise import advise
    from finemoe.cache.rules import register as register_eviction
    from finemoe.planning.plan import plan
    from finemoe.policies import register as register_policy
    from finemoe.runtime.engine import Engine
    from finemoe.runtime.loading import load
    from finemoe.runtime.offloading import offload
    from finemoe.runtime.recorder import record
    from finemoe.simulation.replay import replay
    from finemoe.traces import RoutingTrace

__version__ = "0.1.0"
__all__ = [
    "Engine",
    "RoutingTrace",
    "advise",
    "load",
    "offload",
    "plan",
    "record",
    "register_eviction",
    "register_policy",
    "replay",
]

_HOMES = {
    "Engine": "finemoe.runtime.engine:Engine",
    "RoutingTrace": "finemoe.traces:RoutingTrace",
    "advise": "finemoe.advice.advise:advise",
    "load": "finemoe.runtime.loading:load",
    "offload": "finemoe.runtime.offloading:offload",
    "plan": "finemoe.planning.plan:plan",
    "record": "finemoe.runtime.recorder:record",
    "register_eviction": "finemoe.cache.rules:register",
    "register_policy": "finemoe.policies:register",
    "replay": "finemoe.simulation.replay:replay",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'finemoe' has no attribute {name!r}")
    module, attribute = _HOMES[name].split(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
