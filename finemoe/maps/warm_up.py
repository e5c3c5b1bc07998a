"""Compile the kernels that search, select, rank and forecast, before inference needs them."""

import functools

import numpy as np

from finemoe.maps.expert_map import are_distributions
from finemoe.maps.following import follow_gate_address
from finemoe.maps.forecast_step import foretell_gate_address
from finemoe.maps.forecaster import Forecaster
from finemoe.maps.kernels import (
    accumulate_dots_of_rows,
    advance_prefix,
    follow_prefix,
    gather_layers,
    gather_rows,
    nearest_neighbours,
)
from finemoe.maps.ranking import are_within, rank_as_selected, record_rows
from finemoe.maps.selection import select_rows


def warm_up() -> None:
    """Compile every kernel (or load it from the cache on disk), so that the first search does not have to."""
    codes, embeddings = np.zeros((4, 8), dtype=np.uint16), np.zeros((4, 8), dtype=np.int16)
    probs, squares = np.full((1, 4), 0.25, dtype=np.float32), np.zeros(1, dtype=np.float32)
    dots, neighbours, scores = np.zeros((1, 8), dtype=np.float32), np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.float32)
    accumulate_dots_of_rows(codes, probs, 8, dots)
    accumulate_dots_of_rows(embeddings, probs, 8, dots)
    advance_prefix(codes, probs, dots, squares)
    nearest_neighbours(dots, np.ones(8, dtype=np.float32), squares, neighbours, scores)
    gather_rows(codes, neighbours, probs)
    follow_gate_address()
    are_distributions(probs)
    are_within(probs[0], 0, np.inf)
    norms, layers = np.ones((1, 8), dtype=np.float32), neighbours[None].copy()
    follow_prefix(codes[None], norms, probs[None], dots, squares, layers, scores[None].copy())
    gather_layers(codes[None], 0, layers, probs[None])
    select_rows(probs, np.zeros(1), 1, np.zeros((1, 4), dtype=np.bool_))
    rank_as_selected(probs, np.zeros((1, 1), dtype=np.int64))
    record_rows(probs, np.zeros((1, 1), dtype=np.int64))


@functools.cache
def warm_up_forecasts() -> None:
    """Compile all kernels that a forecaster uses between gates; those for blocks, as of a history, compile on first use."""
    forecaster = Forecaster(1, 2, 1)
    forecaster.start()
    forecaster.hear(0, np.full((1, 2), 0.5, dtype=np.float32), np.zeros((1, 1), dtype=np.int64))
    foretell_gate_address()
