"""Megatron-LM's router replay: a list of one tensor [tokens, K] of ids for each MoE layer, saved with torch.save.

Megatron keeps what it records in memory; its guide has users persist `RouterReplay.get_recorded_data()`, which is such a list, in
the order of layers. Tokens are those of one micro-batch as Megatron flattens it, sequences interleaved. Read in Megatron-LM's
docs, "MoE Router Replay Feature" (2026), and core/transformer/moe/router_replay.py.
"""

from pathlib import Path

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.importers.gathering import require_request
from finemoe.importers.layered import blocks_of, layers_of_tensors, saved_by_torch
from finemoe.importers.opening import Head
from finemoe.importers.routing import Options, Routing

NAME = "megatron"
_TORCH = "data.pkl"


def matches(head: Head) -> bool:
    """Whether torch.save wrote it, with tensors of whole numbers."""
    if not any(name.endswith(_TORCH) for name in head.members):
        return False
    return layers_of_tensors(saved_by_torch(head.path))[0].is_whole


def read(path: Path, options: Options) -> Routing:
    """The routing in such a file, one request.

    Raises:
        FinemoeError: it holds something else, or layers differ in shape; tokens are counted from 0.
    """
    layers = layers_of_tensors(saved_by_torch(path))
    if not all(layer.is_whole for layer in layers):
        raise FinemoeError("its tensors are no ids; expected one [tokens, K] of whole numbers for each MoE layer")
    num_rows, width = layers[0].shape
    ids: np.ndarray = np.empty((num_rows, len(layers), width), np.uint16)
    for rows, values in blocks_of(layers):
        try:
            require_request(values, None)
        except FinemoeError as error:
            raise FinemoeError(f"among tokens {rows.start} to {rows.stop - 1}: it {error}") from error
        ids[rows] = values
    notes = ("a micro-batch is taken as one request, in the order in which Megatron holds its tokens",)
    return Routing(ids, None, np.array([0, num_rows]), notes=notes)
