"""finemoe: Mixture-of-Experts models whose experts do not fit on the device, and the FineMoE paper's artifact.

The names below load what they need on first use, so that `import finemoe` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finemoe.runtime.engine import Engine
    from finemoe.runtime.loading import load
    from finemoe.runtime.offloading import offload
    from finemoe.runtime.recorder import record
    from finemoe.simulation.replay import replay
    from finemoe.traces import RoutingTrace

__version__ = "0.1.0"
__all__ = ["Engine", "RoutingTrace", "load", "offload", "record", "replay"]

_HOMES = {
    "Engine": "finemoe.runtime.engine",
    "RoutingTrace": "finemoe.traces",
    "load": "finemoe.runtime.loading",
    "offload": "finemoe.runtime.offloading",
    "record": "finemoe.runtime.recorder",
    "replay": "finemoe.simulation.replay",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'finemoe' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
