"""Every policy serving the same requests with the live engine (notebooks/stages/3_run_offloading.ipynb).

Counts come from a pass in which search and loads run in line, so that they are the same on every run. For systems that search and
load next to inference, times come from a second pass in which they do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

import finemoe
from finemoe.artifact.figures.run_offloading import RESIDENT
from finemoe.artifact.pipeline.serving import COUNTS, TIMES, Served, serve
from finemoe.artifact.progress import progress
from finemoe.policies import policy_named

_KEY = ["model", "dataset", "policy", "expert_memory", "request"]


def has_two_passes(policy: str) -> bool:
    """Whether a policy works concurrently with inference, so that its counts depend on timing."""
    kind = policy_named(policy)
    return kind.needs_context and not kind.is_synchronous


def offloading_table(
    model: Any,
    tokenizer: Any,
    prompts: pd.DataFrame,
    resident: Sequence[Served],
    histories: Mapping[str, Any],
    expert_memory: float,
    num_tokens: int,
    link: str | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Serve requests under every policy, in one pass or two.

    Args:
        model, tokenizer: as loaded by Transformers.
        prompts: rows (id, prompt).
        resident: what the model generates for the prompts without offloading.
        histories: the history of each policy, by policy.
        expert_memory: share of all routed experts on the device.
        num_tokens: maximum number of tokens generated per request.
        link: link of the measured pass, as `finemoe.offload` takes it.
        options: further options of `finemoe.offload`.
    Returns:
        One row for each policy, pass and request: the point, tokens_equal, counts, times and seconds.
    """
    rows = []
    passes = [(name, flag) for name in histories for flag in [False, True][: 1 + has_two_passes(name)]]
    for policy, asynchronous in progress(passes, "serving", "pass"):
        is_measured = asynchronous or not has_two_passes(policy)
        way: dict[str, Any] = {"link": link or None} if is_measured else {"asynchronous": False}
        with finemoe.offload(model, float(expert_memory), policy, history=histories[policy], **options, **way) as engine:
            served = serve(model, tokenizer, list(prompts["prompt"]), num_tokens, engine)
        for request, reference, result in zip(prompts["id"], resident, served, strict=True):
            point = {"policy": policy, "expert_memory": expert_memory, "asynchronous": asynchronous, "request": request}
            rows.append(point | {"tokens_equal": result.tokens == reference.tokens} | result.report | {"seconds": result.seconds})
    return pd.DataFrame(rows)


def counts_of(results: pd.DataFrame) -> pd.DataFrame:
    """The part that is the same on every run: the passes with inline search and loads.

    Args:
        results: as from `offloading_table`, with the columns model and dataset.
    """
    return results[~results.asynchronous][[*_KEY, "tokens_equal", *COUNTS]]


def times_of(results: pd.DataFrame, prompts: pd.DataFrame, resident: Sequence[Served]) -> pd.DataFrame:
    """Times on this machine: the measured passes, and the model without offloading as policy "resident"."""
    eager = pd.DataFrame({"request": prompts["id"], "seconds": [one.seconds for one in resident]})
    named = {name: results[name].iloc[0] for name in ("model", "dataset")}
    eager = eager.assign(**named, policy=RESIDENT, expert_memory=1.0, tokens_equal=True)
    timed = results[results.asynchronous | ~results.policy.map(has_two_passes)]
    return pd.concat([eager, timed])[[*_KEY, "tokens_equal", *COUNTS, *TIMES, "seconds"]]
