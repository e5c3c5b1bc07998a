"""Confidence intervals over requests, by bootstrap resampling."""

from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A value and its 95 % interval (or arrays of them); bounds are NaN if there is only one request or repetition."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def resample_counts(num_requests: int, num_resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """How often each bootstrap resample draws each request, [resamples, requests]."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_requests, np.full(num_requests, 1 / num_requests), size=num_resamples)


def bounds(resampled: np.ndarray, num_requests: int, level: float = 0.95) -> np.ndarray:
    """The percentile interval of a value over its resamples, [resamples, ...] -> [2, ...]; NaN for a single request, whose
    resamples are all equal."""
    found: np.ndarray = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return found if num_requests > 1 else np.full_like(found, np.nan)


def bootstrap_ratio(
    numerators: np.ndarray, denominators: np.ndarray, num_resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """The percentile bootstrap interval of a ratio of sums over requests, such as hits / accesses.

    Args:
        numerators, denominators: [requests, ...], one entry per request; whole requests are resampled, never rows.
    Returns:
        Interval of arrays [...]: the ratio of the sums and its bounds.
    """
    numerators, denominators = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    weights = resample_counts(len(numerators), num_resamples, seed).astype(float)
    ratios = np.tensordot(weights, numerators, axes=1) / np.tensordot(weights, denominators, axes=1)
    low, high = bounds(ratios, len(numerators), level)
    return Interval(numerators.sum(axis=0) / denominators.sum(axis=0), low, high)


def bootstrap_mean(values: np.ndarray, num_resamples: int = 2000, seed: int = 0, level: float = 0.95) -> Interval:
    """The mean over requests and its percentile bootstrap interval, [requests, ...] -> [...]."""
    values = np.asarray(values, dtype=float)
    return bootstrap_ratio(values, np.ones_like(values), num_resamples, seed, level)


def bootstrap_median(values: np.ndarray, num_resamples: int = 2000, seed: int = 0, level: float = 0.95) -> Interval:
    """The median of repeated measurements and its percentile bootstrap interval, [n] -> scalar."""
    values = np.asarray(values, dtype=float)
    draws = np.random.default_rng(seed).integers(0, len(values), size=(num_resamples, len(values)))
    low, high = bounds(np.median(values[draws], axis=1), len(values), level)
    return Interval(np.median(values), low, high)
