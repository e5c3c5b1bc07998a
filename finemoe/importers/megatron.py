"""Megatron-LM's router replay: a list of one tensor [tokens, K] of ids for each MoE layer, saved with torch.save.

Megatron keeps recorded routing in memory; its guide recommends saving `RouterReplay.get_recorded_data()`, which is such a list,
in the order of layers. The tokens are those of one micro-batch in Megatron's flattened order, with sequences interleaved.
Sources: Megatron-LM's docs, "MoE Router Replay Feature" (2026), and core/transformer/moe/router_replay.py.
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
    """Whether torch.save wrote the file with tensors of whole numbers."""
    if not any(name.endswith(_TORCH) for name in head.members):
        return False
    return layers_of_tensors(saved_by_torch(head.path))[0].is_whole


def read(path: Path, options: Options) -> Routing:
    """Read the routing in such a file, one request.

    Raises:
        FinemoeError: it has other contents, or layers differ in shape; tokens are counted from 0.
    """
    layers = layers_of_tensors(saved_by_torch(path))
    if not all(layer.is_whole for layer in layers):
        raise FinemoeError("its tensors are not expert ids; expected one [tokens, K] of whole numbers for each MoE layer")
    num_rows, width = layers[0].shape
    ids: np.ndarray = np.empty((num_rows, len(layers), width), np.uint16)
    for rows, values in blocks_of(layers):
        try:
            require_request(values, None)
        except FinemoeError as error:
            raise FinemoeError(f"among tokens {rows.start} to {rows.stop - 1}: {error}") from error
        ids[rows] = values
    notes = ("the micro-batch is read as one request, in Megatron's order of tokens",)
    return Routing(ids, None, np.array([0, num_rows]), notes=notes)
