"""Arrival times and lengths of requests: the Azure LLM inference trace, or a generator with its published statistics."""

from pathlib import Path

import numpy as np
import pandas as pd

from finemoe.errors import FinemoeError

RATE_PER_S = 2.91  # the rate at which the paper draws requests from the trace
# Conversation trace of November 2023 (Patel et al., Splitwise, ISCA 2024; github.com/Azure/AzurePublicDataset): mean and
# standard deviation of its tokens. Gaps between arrivals vary about as much as in a Poisson process (1.09 times).
_PROMPT_TOKENS, _NEW_TOKENS = (1154.7, 1108.8), (211.1, 162.9)
_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def azure_like(num_requests: int, rate_per_s: float = RATE_PER_S, seed: int = 0) -> pd.DataFrame:
    """Poisson arrivals with log-normal lengths that have the trace's means and deviations.

    Returns:
        Columns arrival_s, prompt_tokens, new_tokens, in order of arrival.
    """
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "arrival_s": np.cumsum(rng.exponential(1 / rate_per_s, num_requests)),
            "prompt_tokens": _lengths(rng, *_PROMPT_TOKENS, num_requests),
            "new_tokens": _lengths(rng, *_NEW_TOKENS, num_requests),
        }
    )


def azure_trace(path: str | Path, num_requests: int, rate_per_s: float = RATE_PER_S, seed: int = 0) -> pd.DataFrame:
    """Requests drawn from the trace's file in its order, with arrivals scaled to the rate.

    Raises:
        FinemoeError: the file is missing, is not the trace, or contains fewer requests.
    """
    try:
        trace = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise FinemoeError(f"{path}: arrivals cannot be read ({error})") from error
    if missing := [name for name in _COLUMNS if name not in trace]:
        raise FinemoeError(f"{path} has no column {missing[0]}; the Azure LLM inference trace has {', '.join(_COLUMNS)}")
    if len(trace) < num_requests:
        raise FinemoeError(f"{path} contains {len(trace)} requests, but {num_requests} are requested")
    drawn = trace.iloc[np.sort(np.random.default_rng(seed).choice(len(trace), num_requests, replace=False))]
    seconds = pd.to_datetime(drawn["TIMESTAMP"]).astype("int64").to_numpy() / 1e9
    seconds -= seconds[0]
    factor = (num_requests - 1) / rate_per_s / seconds[-1] if num_requests > 1 else 0.0
    return pd.DataFrame(
        {
            "arrival_s": seconds * factor,
            "prompt_tokens": drawn["ContextTokens"].to_numpy(),
            "new_tokens": drawn["GeneratedTokens"].to_numpy(),
        }
    )


def queued(arrivals_s: np.ndarray, service_s: np.ndarray) -> np.ndarray:
    """Waiting time of each request at a single first-come, first-served server, [n] seconds."""
    waits, free_s = np.zeros(len(arrivals_s)), 0.0
    for number, (arrival_s, duration_s) in enumerate(zip(arrivals_s, service_s, strict=True)):
        waits[number] = max(0.0, free_s - arrival_s)
        free_s = max(free_s, arrival_s) + duration_s
    return waits


def _lengths(rng: np.random.Generator, mean: float, deviation: float, count: int) -> np.ndarray:
    variance = np.log1p((deviation / mean) ** 2)
    drawn = rng.lognormal(np.log(mean) - variance / 2, np.sqrt(variance), count)
    return np.maximum(2, np.round(drawn)).astype(np.int64)
