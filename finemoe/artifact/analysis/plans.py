"""Plans of published models on described machines, for docs/planning.md: `python -m finemoe.artifact.analysis.plans`."""

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

import finemoe
from finemoe.artifact.plotting import save_table
from finemoe.paths import DATA

CASES = {
    "laptop-8gb": ("olmoe-1b-7b", "gpt-oss-20b", "qwen3-30b-a3b"),
    "rtx4090": ("qwen3-30b-a3b", "gpt-oss-120b"),
}
_HOST_MEMORY = {"laptop-8gb": "32GiB", "rtx4090": "128GiB"}
_CONTEXT = 4096


def plan_rows(model: str, machine: str) -> list[dict[str, Any]]:
    """The choices of one plan, the best first.

    Returns:
        Rows (machine, host_memory, model, place, expert_format, is_lossy, policy, eviction, expert_memory_bytes, held,
        disk_bytes, slow_tokens_per_s, fast_tokens_per_s).
    """
    found = finemoe.plan(model, hardware=machine, host_memory=_HOST_MEMORY[machine], context=_CONTEXT)
    return [
        {
            "machine": machine,
            "host_memory": _HOST_MEMORY[machine],
            "model": model,
            "place": place,
            "expert_format": one.expert_format,
            "is_lossy": one.is_lossy,
            "policy": one.policy,
            "eviction": one.eviction or "",
            "expert_memory_bytes": one.expert_memory_bytes,
            "held": one.slots / one.all_experts,
            "disk_bytes": one.disk_bytes,
            "slow_tokens_per_s": one.tokens_per_s[0],
            "fast_tokens_per_s": one.tokens_per_s[1],
        }
        for place, one in enumerate(found.choices)
    ]


def write_table(output: Annotated[Path, typer.Option()] = DATA / "reference" / "plans.csv") -> None:
    """Plan every model on every machine and write the choices as CSV; plans that the file has are kept."""
    table = pd.read_csv(output) if output.exists() else pd.DataFrame({"machine": [], "model": []})
    for machine, models in CASES.items():
        for model in models:
            if ((table.machine == machine) & (table.model == model)).any():
                continue
            table = pd.concat([table, pd.DataFrame(plan_rows(model, machine))], ignore_index=True)
            save_table(table, output)


if __name__ == "__main__":
    typer.run(write_table)
