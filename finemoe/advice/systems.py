"""The systems that advice compares, grouped by kind."""

from finemoe.simulation.systems import SYSTEMS, System

ON_DEMAND = {
    "on-demand (LRU)": SYSTEMS["on-demand (LRU)"],
    "on-demand (LFU)": SYSTEMS["on-demand (LFU)"],
    "on-demand (LFRU)": System("on-demand", "lfru"),
    "on-demand (next use)": System("on-demand", "next-use"),
}
FINEMOE, PLUS = "FineMoE", "finemoe-plus"
PREFETCHING = {
    **{name: SYSTEMS[name] for name in ("Mixtral-Offloading", "ProMoE", "MoE-Infinity", FINEMOE)},
    PLUS: System("finemoe-plus"),
}
BELADY, ORACLE, RESIDENT = "Belady (on demand)", "oracle", "everything resident"
LIMITS = {BELADY: SYSTEMS[BELADY], ORACLE: System("oracle"), RESIDENT: System("no-offload")}
ALL = ON_DEMAND | PREFETCHING | LIMITS
BELADY_RULE = "belady"
RULES = ("lru", "lfu", "lfu-aged", "lfru", "least-stale", "least-stale-interval", "next-use", BELADY_RULE)
