"""The live engine over a paced link (notebooks/studies/paced_link.ipynb): checks of the link, and two policies compared."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import finemoe
from finemoe.artifact.figures.paced_link import POLICIES
from finemoe.artifact.pipeline.noise import busy_share
from finemoe.artifact.pipeline.serving import serve
from finemoe.artifact.pipeline.timing import hidden_share, overtaking_s, paced_link, stall_ratio
from finemoe.artifact.progress import progress
from finemoe.maps.store import ExpertMapStore
from finemoe.runtime.loading import load_model


def link_checks(rates: Mapping[str, float], prompt: str, num_trials: int) -> pd.DataFrame:
    """Check that the engine's link behaves as its bandwidth predicts, for each model.

    Args:
        rates: bytes per second of the paced link, by model folder.
        prompt: prompt of the measured stall.
        num_trials: number of trials of each check except the stall.
    Returns:
        Rows (model, stall_over_expected, hidden_share, hidden_low, overtaking_ms, overtaking_high_ms, chunk_ms).
    """
    rows = []
    for folder, rate in progress(rates.items(), "checking the link", "model"):
        stall = stall_ratio(folder, prompt, rate, num_tokens=3)
        hidden = hidden_share(folder, rate, num_trials)
        waited, chunk_s = overtaking_s(folder, rate, num_trials)
        row = {"model": Path(folder).name, "stall_over_expected": stall, "hidden_share": hidden.value, "hidden_low": hidden.low}
        row |= {"overtaking_ms": waited.value * 1e3, "overtaking_high_ms": waited.high * 1e3, "chunk_ms": chunk_s * 1e3}
        rows.append(row)
    return pd.DataFrame(rows)


def paced_table(
    rates: Mapping[str, float],
    stores: Sequence[Path],
    prefetch_distances: Sequence[int],
    prompts: pd.DataFrame,
    expert_memories: Sequence[float],
    num_tokens: int,
    num_rounds: int,
) -> pd.DataFrame:
    """Both policies serve the same requests over the same link, in rounds.

    Args:
        rates: as in `link_checks`.
        stores: filled expert map store of each model.
        prefetch_distances: d of each model, in layers.
        prompts: rows (id, prompt).
        expert_memories: shares of all routed experts.
        num_tokens: tokens generated per request.
        num_rounds: number of rounds.
    Returns:
        Rows (model, policy, expert_memory, request, round, busy, the engine's counts and times, seconds, tpot_ms).
    Raises:
        AssertionError: the tokens of an offloaded model differ.
    """
    rows: list[dict[str, Any]] = []
    subjects = zip(rates.items(), stores, prefetch_distances, strict=True)
    turns = list(itertools.product(range(num_rounds), subjects))
    for number, ((folder, rate), store, distance) in progress(turns, "serving", "model and round"):
        model, tokenizer = load_model(folder)
        expected = serve(model, tokenizer, list(prompts["prompt"]), num_tokens, min_new_tokens=num_tokens)
        options: dict[str, Any] = {"history": ExpertMapStore.load(store), "prefetch_distance": distance, "link": paced_link(rate)}
        for share, policy in itertools.product(expert_memories, POLICIES):
            with finemoe.offload(model, share, policy, **options) as engine:
                served = serve(model, tokenizer, list(prompts["prompt"]), num_tokens, engine, min_new_tokens=num_tokens)
            assert [one.tokens for one in served] == [one.tokens for one in expected]
            busy = busy_share()
            for request, one in zip(prompts["id"], served, strict=True):
                point = {"model": Path(folder).name, "policy": policy, "expert_memory": share, "request": request}
                point |= {"round": number, "busy": busy}
                rows.append(point | one.report | {"seconds": one.seconds, "tpot_ms": 1e3 * one.report["tpot_s"]})
    return pd.DataFrame(rows)
