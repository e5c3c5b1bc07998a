"""No offloading: every expert on the device, the fastest and largest of every comparison."""

from finemoe.policies.on_demand import OnDemand


class NoOffload(OnDemand):
    """Holds all experts from the start, whatever `expert_memory` says; moves nothing, misses nothing."""

    holds_everything = True
