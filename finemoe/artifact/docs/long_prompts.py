"""The table and the numbers of long prompts in docs/engine.md."""

from collections.abc import Iterator

import pandas as pd

from finemoe.artifact.docs.tables import Number, groups, percent, shipped, slug
from finemoe.artifact.markdown import pipe_table
from finemoe.artifact.pipeline.long_prompts import COMPARED_AT, POLICIES, summary

_TABLE = "reference/long_prompts_measured.csv"
_BAR = 1.1


def long_prompt_blocks() -> dict[str, str]:
    """The page's table, by the name of its marks."""
    streamed = _medians().query("streaming")
    lines = []
    for (link, memory), part in groups(streamed, "link", "expert_memory"):
        ratios = part.set_index(["policy", "prompt"])["ratio"]
        cells = {policy: f"{ratios[policy, 0]:.2f}, {ratios[policy, 1]:.2f}" for policy in POLICIES}
        lines.append({"link": link, "experts resident": percent(memory), **cells})
    return {"long prompts": pipe_table(pd.DataFrame(lines)) + "\n"}


def long_prompt_numbers() -> Iterator[Number]:
    """What the page's sentences say about the table."""
    table, medians = shipped(_TABLE), _medians()
    streamed, plain = medians.query("streaming"), medians.query("not streaming")
    first, fresh = table.iloc[0], table[table.streaming & (table["prompt"] == 0)]
    moved = fresh.moved_bytes / fresh.demanded_bytes
    for name, value, meaning in (
        ("tokens", f"{first.prompt_tokens:,}", "length of the long prompts"),
        ("machine", first.machine, "where long prompts were measured"),
        ("rounds", str(table["round"].nunique()), "rounds behind each median of long prompts"),
        ("busy", percent(table.busy.median()), "median share of the machine that other work took meanwhile"),
        ("cells", str(len(streamed)), "cells of link, memory, policy and prompt"),
        ("within", str(int((streamed.ratio <= _BAR).sum())), "of those, cells whose median ratio is at most 1.1"),
        ("demanded", percent(_demanded_share(table)), "share of all experts that the first long prompt demands"),
        ("spread", _spread(streamed), "median spread of those ratios over the rounds"),
        ("moved", f"{moved.min():.2f} to {moved.max():.2f}", "bytes moved for a first streamed prompt, over those it demands"),
    ):
        yield Number(f"long_prompts_{name}", value, _TABLE, meaning)
    of_streamed = streamed[streamed.expert_memory == COMPARED_AT]
    for link, part in groups(plain, "link"):
        both = part.merge(of_streamed, on=["link", "policy", "prompt"], suffixes=("", "_streamed"))
        on_demand = both[(both.policy == POLICIES[0]) & (both.prompt == 0)]
        ratio = float((on_demand.ttft_s / on_demand.ttft_s_streamed).iloc[0])
        meaning = f"TTFT of a first long prompt loaded on demand, over the same streamed, {link}"
        yield Number(f"long_prompts_plain_{slug(link)}", f"{ratio:.2f}", _TABLE, meaning)


def _medians() -> pd.DataFrame:
    return summary(shipped(_TABLE))


def _spread(medians: pd.DataFrame) -> str:
    return percent(medians.spread.median()) if medians.spread.notna().any() else "unknown"


def _demanded_share(table: pd.DataFrame) -> float:
    one = table[table["prompt"] == 0].iloc[0]
    return float((one.hits + one.late + one.misses) / one.num_experts)
