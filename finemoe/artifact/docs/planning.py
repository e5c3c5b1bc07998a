"""Tables of docs/planning.md: plans of published models, assumed routing, and plans against measured runs."""

import pandas as pd

from finemoe.artifact.docs.tables import groups, percent, rows, shipped, signed_percent
from finemoe.artifact.markdown import pipe_table
from finemoe.artifact.pipeline.plan_check import check_rows
from finemoe.units import format_bytes

_PLANS, _ROUTING, _CHECK = "reference/plans.csv", "reference/assumed_routing.csv", "reference/plan_check_measured.csv"


def planning_blocks() -> dict[str, str]:
    """The page's tables, by the name of their marks."""
    return {"plans": _plans(), "assumed routing": _routing(), "check": _check()}


def _plans() -> str:
    table = shipped(_PLANS).fillna({"eviction": ""})
    lines = [
        {
            "machine": f"`{one.machine}`, {one.host_memory} host memory",
            "model": f"`{one.model}`",
            "experts in": f"{one.expert_format}{' (lossy)' if one.is_lossy else ''}",
            "policy": f"{one.policy}{f', {one.eviction}' if one.eviction else ''}",
            "expert memory": f"{format_bytes(one.expert_memory_bytes)} ({percent(one.held)})",
            "on disk": format_bytes(one.disk_bytes) if one.disk_bytes else "",
            "tokens/s": f"{one.slow_tokens_per_s:.3g} to {one.fast_tokens_per_s:.3g}",
        }
        for one in rows(table[(table.place == 0) | ~table.is_lossy].drop_duplicates(["machine", "model", "is_lossy"]))
    ]
    return pipe_table(pd.DataFrame(lines)) + "\n"


def _routing() -> str:
    table, lines = shipped(_ROUTING), []
    for (trace, recipe), part in groups(table, "trace", "recipe"):
        errors = (part.assumed_hit_rate - part.hit_rate).abs().groupby(part.rule, sort=False)
        cells = {f"{rule}: mean (largest)": f"{one.mean():.3f} ({one.max():.3f})" for rule, one in errors}
        lines.append({"hit rates of": trace, "fitted to": recipe, **cells})
    return pipe_table(pd.DataFrame(lines)) + "\n"


def _check() -> str:
    lines = [
        {
            "model": one.model,
            "an expert takes": f"{one.load_ms:g} ms",
            "held": percent(one.share),
            "policy": one.policy,
            "planned tokens/s": f"{one.planned_tokens_per_s:.1f}",
            "measured": f"{one.measured_tokens_per_s:.1f}",
            "planned over measured": signed_percent(one.error),
            "memory": f"{100 * one.memory_error:+.1f} %".replace("-", "−"),
        }
        for one in rows(check_rows(shipped(_CHECK)))
    ]
    return pipe_table(pd.DataFrame(lines)) + "\n"
