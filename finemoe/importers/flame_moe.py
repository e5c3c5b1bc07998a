"""FLAME-MoE's captured router actives: a folder of one checkpoint's step, with a folder for each MoE layer and .pt files therein.

Each file is a pair of tensors saved with torch.save, [tokens, K] scores and [tokens, K] experts, and is called alike in every
layer's folder. Layers are named by Megatron's numbers, from 1, dense ones without a folder. Read where FLAME-MoE's own scripts
read them: scripts/empirical_analysis/modules/router_saturation_step2.py of cmu-flame/FLAME-MoE, in a copy at MAPS-research/DRMoET
7354d80. What writes them, a fork of Megatron-LM, was not seen, so nothing is said of where a sequence ends in a file.
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
    """Whether it has folders called by numbers, with .pt files."""
    return any(layer.is_dir() and layer.name.isdigit() and any(layer.glob("*.pt")) for layer in folder.iterdir())


def read(path: Path, options: Options) -> Routing:
    """The routing in such a folder, one request for each file's name, in alphabetical order.

    Raises:
        FinemoeError: a layer lacks a file, or a file is something else; tokens are counted from 0.
    """
    if not path.is_dir():
        raise FinemoeError("FLAME-MoE's actives are a folder, of one step, with a folder for each layer")
    layers = sorted((layer for layer in path.iterdir() if layer.is_dir() and layer.name.isdigit()), key=lambda one: int(one.name))
    names = sorted({file.name for layer in layers for file in layer.glob("*.pt")})
    if not names:
        raise FinemoeError("holds no folder called by a layer's number, with .pt files")
    gathering = Gathering()
    for name in names:
        files = [layer / name for layer in layers]
        if missing := next((file for file in files if not file.is_file()), None):
            raise FinemoeError(f"{missing} is missing, which other layers have; a capture was broken off")
        pairs = [_pair(file) for file in files]
        ids = np.concatenate([values for _, values in blocks_of([ids for _, ids in pairs])])
        weights = np.concatenate([values for _, values in blocks_of([scores for scores, _ in pairs])])
        with named(path / "*" / name):
            gathering.add(ids, weights, name=name.removesuffix(".pt"))
    told = f"layers are Megatron's {', '.join(layer.name for layer in layers[:3])}{', ...' if len(layers) > 3 else ''}"
    return gathering.routing(notes=(told, "a file is taken as one request; where its sequences end is not known"))


def _pair(file: Path) -> tuple[Layer, Layer]:
    """Scores and experts of one layer's file."""
    with named(file):
        saved = saved_by_torch(file)
        if not isinstance(saved, list | tuple) or len(saved) != 2:
            raise FinemoeError("is no pair of scores and experts")
        scores, ids = layers_of_tensors(list(saved))
        if scores.is_whole or not ids.is_whole or scores.shape != ids.shape:
            raise FinemoeError(f"is no pair of scores and experts, but of shapes {list(scores.shape)} and {list(ids.shape)}")
        return scores, ids
