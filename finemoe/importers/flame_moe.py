"""FLAME-MoE's captured router actives: a folder for one step of a checkpoint, with a subfolder of .pt files for each MoE layer.

Each file is a pair of tensors saved with torch.save, [tokens, K] scores and [tokens, K] experts, and has the same name in every
layer's folder. Folders are named by Megatron's layer numbers, which start at 1; dense layers have no folder. The format is taken
from the code that reads it, FLAME-MoE's scripts/empirical_analysis/modules/router_saturation_step2.py (cmu-flame/FLAME-MoE), in a
copy at MAPS-research/DRMoET 7354d80. The code that writes it, a fork of Megatron-LM, was not available, so where a sequence ends
within a file is unknown.
"""

from pathlib import Path

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.importers.gathering import Gathering
from finemoe.importers.layered import Layer, blocks_of, layers_of_tensors, saved_by_torch
from finemoe.importers.opening import named
from finemoe.importers.routing import Options, Routing

NAME = "flame-moe"


def matches_folder(folder: Path) -> bool:
    """Whether the folder has subfolders with numbers as names that hold .pt files."""
    return any(layer.is_dir() and layer.name.isdigit() and any(layer.glob("*.pt")) for layer in folder.iterdir())


def read(path: Path, options: Options) -> Routing:
    """Read the routing of such a folder, one request per file name, in alphabetical order.

    Raises:
        FinemoeError: a layer lacks a file, or a file has other contents; tokens are counted from 0.
    """
    if not path.is_dir():
        raise FinemoeError("FLAME-MoE's actives are a folder for one step, with a subfolder for each layer; name that folder")
    layers = sorted((layer for layer in path.iterdir() if layer.is_dir() and layer.name.isdigit()), key=lambda one: int(one.name))
    names = sorted({file.name for layer in layers for file in layer.glob("*.pt")})
    if not names:
        raise FinemoeError("has no subfolder named by a layer number that holds .pt files")
    gathering = Gathering()
    for name in names:
        files = [layer / name for layer in layers]
        if missing := next((file for file in files if not file.is_file()), None):
            raise FinemoeError(f"{missing} is missing, but other layers have it; the capture was interrupted")
        pairs = [_pair(file) for file in files]
        ids = np.concatenate([values for _, values in blocks_of([ids for _, ids in pairs])])
        weights = np.concatenate([values for _, values in blocks_of([scores for scores, _ in pairs])])
        with named(path / "*" / name):
            gathering.add(ids, weights, name=name.removesuffix(".pt"))
    told = f"layers have Megatron's numbers {', '.join(layer.name for layer in layers[:3])}{', ...' if len(layers) > 3 else ''}"
    return gathering.routing(notes=(told, "each file is read as one request; where its sequences end is unknown"))


def _pair(file: Path) -> tuple[Layer, Layer]:
    """Scores and experts of one layer's file."""
    with named(file):
        saved = saved_by_torch(file)
        if not isinstance(saved, list | tuple) or len(saved) != 2:
            raise FinemoeError("is not a pair of scores and experts")
        scores, ids = layers_of_tensors(list(saved))
        if scores.is_whole or not ids.is_whole or scores.shape != ids.shape:
            raise FinemoeError(f"is not a pair of scores and experts, but of shapes {list(scores.shape)} and {list(ids.shape)}")
        return scores, ids
