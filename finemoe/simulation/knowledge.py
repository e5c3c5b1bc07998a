"""What each system learns from a history beforehand, computed once for all runs that use it."""

import functools
from typing import Any

from finemoe.policies.finemoe import store_from
from finemoe.policies.finemoe_plus import forecaster_from
from finemoe.simulation.replay import replay_setup
from finemoe.traces import RoutingTrace

_MAKERS = {"finemoe": store_from, "finemoe-plus": forecaster_from}


class Knowledge:
    """Prepared histories for `replay`.

    Args:
        served: the trace to replay, which determines the model's sizes. history: other requests. options: see `replay_setup`.
    """

    def __init__(self, served: RoutingTrace, history: RoutingTrace | None, **options: Any) -> None:
        self._history = history
        self._setup = functools.cache(lambda: replay_setup(served, history, **options))
        self._known: dict[str, Any] = {}

    def of(self, policy: str) -> Any:
        """FineMoE's filled store; finemoe-plus' trained forecaster; for others the history itself."""
        if policy not in _MAKERS or self._history is None:
            return self._history
        if policy not in self._known:
            self._known[policy] = _MAKERS[policy](self._setup())
        return self._known[policy]
