"""A small advice with made-up numbers, each of them unique, so that a test can tell which one is shown."""

from typing import Any

from finemoe.advice.result import Advice
from finemoe.advice.systems import ALL, LIMITS, ON_DEMAND, PREFETCHING, RESIDENT, RULES

LAYERS, EXPERTS, TOP_K, EXPERT_BYTES = 4, 8, 2, 3 << 20
SIZES = (4, 8, 12, 20, 32)
CHOSEN, BEST = 12, 20
NAN = float("nan")
MACHINE = {
    "model": "tiny-moe",
    "testbed": "a made-up machine",
    "devices": 1,
    "memory_bytes": 100 << 20,
    "link_bytes_per_s": 12.5e9,
    "expert_bytes": EXPERT_BYTES,
    "expert_load_s": 0.000251,
    "resident_bytes": 30 << 20,
    "kv_cache_bytes": 1 << 20,
    "longest_request": 77,
    "room_bytes": 69 << 20,  # 23 experts
}
SYSTEMS = tuple(name for name in ALL if name != "Mixtral-Offloading")


def time_rows(intervals: bool = True) -> list[dict[str, Any]]:
    """Slower the smaller the memory; systems one after the other, limits fastest."""
    rows = []
    for place, system in enumerate(reversed(SYSTEMS)):
        for slots in (SIZES[-1],) if system == RESIDENT else SIZES:
            tpot_s = (30 + 5 * place + (SIZES[-1] - slots) * 1.7) / 1e3
            rows.append(
                {
                    "system": system,
                    "slots": slots,
                    "expert_memory": slots / 32,
                    "bytes": slots * EXPERT_BYTES,
                    "fits": slots * EXPERT_BYTES <= MACHINE["room_bytes"],
                    "tpot_s": tpot_s,
                    "low": tpot_s * 0.97 if intervals else NAN,
                    "high": tpot_s * 1.04 if intervals else NAN,
                    "tokens_per_s": 1 / tpot_s,
                    "ttft_s": 0.321,
                    "stalled": 0.173,
                    "hit_rate": slots / 40,
                    "recall_at_k": 0.613 if system in PREFETCHING else NAN,
                }
            )
    return rows


def fastest(rows: list[dict[str, Any]], slots: int, names: Any) -> dict[str, Any]:
    return min((row for row in rows if row["slots"] == slots and row["system"] in names), key=lambda row: row["tpot_s"])


def prefetch_rows(rows: list[dict[str, Any]], intervals: bool) -> list[dict[str, Any]]:
    found = []
    for slots in SIZES:
        ahead, on_demand = fastest(rows, slots, PREFETCHING), fastest(rows, slots, ON_DEMAND)
        ratio = ahead["tpot_s"] / on_demand["tpot_s"]
        found.append(
            {
                "slots": slots,
                "expert_memory": slots / 32,
                "on_demand": on_demand["system"],
                "prefetching": ahead["system"],
                "ratio": ratio,
                "low": ratio - 0.031 if intervals else NAN,
                "high": ratio + 0.029 if intervals else NAN,
                "verdict": "pays" if intervals else "cannot be told",
            }
        )
    return found


def recall(predictor: str, value: float, distance: int | None = None, width: float = NAN) -> dict[str, Any]:
    return {"predictor": predictor, "distance": distance, "recall": value, "low": value - width, "high": value + width}


def make_advice(machine: bool = True, intervals: bool = True, sizes_known: bool = True, **changes: Any) -> Advice:
    """Advice with or without a machine, intervals, and the size of an expert."""
    width = 0.02 if intervals else NAN
    each = EXPERT_BYTES if sizes_known else None
    values: dict[str, Any] = {
        "trace": {
            "model": "tiny-moe",
            "requests": 6 if intervals else 1,
            "tokens": 1234,
            "decode_steps": 1111,
            "tokens_per_step": 1.0,
            "layers": LAYERS,
            "experts": EXPERTS,
            "top_k": TOP_K,
            "has_weights": True,
            "all_experts": 32,
            "expert_bytes": each,
            "all_experts_bytes": None if each is None else 32 * each,
        },
        "working_set": [
            {"tokens": tokens, "mean": mean, "least": mean - 0.5, "greatest": mean + 0.5, "experts": 4 * mean}
            for tokens, mean in ((1, 2.5), (10, 5.25), (100, 7.125))
        ],
        "request": {"tokens": 185.2, "mean": 7.25, "least": 6.5, "greatest": 7.75, "experts": 29.0},
        "reuse": [{"tokens": tokens, "share": share} for tokens, share in ((1, 0.31), (2, 0.47), (4, 0.62), (8, 0.83))],
        "concentration": [
            {
                "layer": layer,
                "touched": 8 - layer,
                "entropy_bits": 2.5,
                "effective": 5.657 - layer / 10,
                "top_tenth": 0.21 + layer / 100,
                "top_quarter": 0.43 + layer / 100,
                "gini": 0.371,
            }
            for layer in range(LAYERS)
        ],
        "predictability": [
            recall("chance", 0.25),
            recall("most used, in hindsight", 0.412, width=width),
            recall("the token before", 0.377, width=width),
            *(recall("FineMoE", 0.61 - ahead / 100, ahead) for ahead in (1, 2, 3)),
            recall("ProMoE", 0.555, 3),
            recall("finemoe-plus", 0.733),
        ],
        "hit_rates": [
            {
                "rule": rule,
                "slots": slots,
                "expert_memory": slots / 32,
                "hit_rate": slots / 36 + place / 100,
                "low": slots / 36 + place / 100 - width,
                "high": slots / 36 + place / 100 + width,
            }
            for place, rule in enumerate(RULES)
            for slots in (2, 4, 6, 7, 8, 10, 12, 16, 20, 24, 28, 32)
        ],
        "cliff": {"cycle": 8, "hit_rate_at": 0.222, "hit_rate_before": 0.111},
        "knee": {"rule": "next-use", "slots": 16, "lru_slots": 20},
        "notes": ["replayed: all of it"],
        "warnings": ["the trace is made up"],
        "left_out": {"Mixtral-Offloading": "routers applied 1 ahead are not recorded"},
    }
    if machine:
        values |= timed(intervals)
    return Advice(**values | changes)


def timed(intervals: bool) -> dict[str, Any]:
    rows = time_rows(intervals)
    on_demand, ahead = fastest(rows, CHOSEN, ON_DEMAND), fastest(rows, CHOSEN, PREFETCHING)
    limits = {row["system"]: row["tpot_s"] for row in rows if row["system"] in LIMITS and row["slots"] in (CHOSEN, SIZES[-1])}
    return {
        "machine": dict(MACHINE),
        "times": rows,
        "prefetching": prefetch_rows(rows, intervals),
        "recommendation": {
            "system": ahead["system"],
            "slots": CHOSEN,
            "row": ahead,
            "best": fastest(rows, BEST, PREFETCHING),
            "on_demand": on_demand,
            "prefetching": ahead,
            "limited_by_room": True,
        },
        "limits": {name: limits[name] for name in ("oracle", RESIDENT)},
        "sensitivity": [
            {
                "change": change,
                "slots": slots,
                "bytes": slots * EXPERT_BYTES,
                "fits": slots < 23,
                "on_demand_s": seconds,
                "prefetching_s": seconds * 0.91,
                "ratio": 0.91,
            }
            for change, slots, seconds in (
                ("as it is", 12, 0.0811),
                ("expert memory x 2", 24, 0.0622),
                ("link x 0.5", 12, 0.1333),
            )
        ],
    }
