"""No offloading: every expert on the device, the fastest and largest system of every comparison."""

from finemoe.policies.on_demand import OnDemand


class NoOffload(OnDemand):
    """Holds all experts from the start, regardless of `expert_memory`; moves nothing and misses nothing."""

    holds_everything = True
