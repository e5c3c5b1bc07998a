"""Transformers' `output_router_logits`: one tensor [tokens, J] for each MoE layer, of one sequence.

Saved with torch.save as the original tuple, or as router_logits_0, router_logits_1, ... in safetensors or .npz. Logits become
distributions by a softmax; a layer whose rows already sum to 1 is kept unchanged, since some families' routers output
probabilities (Gemma 4's in Transformers 5.23: findings/router_logits_that_are_probabilities.sh). K must be given. The K most
probable experts are taken as the selected ones, which is correct for routers without groups and without a bias; for others
(DeepSeek-V3, GLM-4.5), the selection cannot be derived from the logits alone. Scores that are neither logits nor distributions
are refused, as is a width other than J.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.importers.layered import (
    Layer,
    blocks_of,
    layers_of_npz,
    layers_of_safetensors,
    layers_of_tensors,
    saved_by_torch,
)
from finemoe.importers.opening import Head
from finemoe.importers.routing import Options, Routing

NAME = "router-logits"
_TORCH = "data.pkl"
_TOLERANCE = 0.02  # for sums in bfloat16


def matches(head: Head) -> bool:
    """Whether the file is safetensors, an .npz of router logits, or a torch.save file with floating-point tensors."""
    if any(name.startswith("router_logits") for name in head.members):
        return True
    if any(name.endswith(_TORCH) for name in head.members):
        return not layers_of_tensors(_tensors(saved_by_torch(head.path)))[0].is_whole
    return _is_safetensors(head)


def _is_safetensors(head: Head) -> bool:
    if len(head.start) < 9 or head.start[8:9] != b"{":
        return False
    (length,) = struct.unpack("<Q", head.start[:8])
    return int(length) < 1 << 27


def _tensors(saved: Any) -> Any:
    """The tuple itself, or the entry that a saved model output has under its name."""
    return saved["router_logits"] if isinstance(saved, dict) and "router_logits" in saved else saved


def read(path: Path, options: Options) -> Routing:
    """Read the routing in such a file, one request, with full distributions.

    Raises:
        FinemoeError: K is unknown, widths differ, or a row is neither logits nor a distribution; tokens are counted from 0.
    """
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"\x1f\x8b":
        raise FinemoeError("router logits are memory-mapped; decompress the file first")
    is_npz = start == b"PK" and any(name.startswith("router_logits") for name in Head(path).members)
    if start == b"PK" and not is_npz:
        layers = layers_of_tensors(_tensors(saved_by_torch(path)))
    else:
        layers = layers_of_npz(path) if is_npz else layers_of_safetensors(path)
    return _routing(layers, options)


def _routing(layers: list[Layer], options: Options) -> Routing:
    num_rows, width = layers[0].shape
    top_k, num_experts = options.size("top_k"), options.size("num_experts")
    if top_k is None:
        raise FinemoeError("router logits do not state K; give it with --top-k, or name a model's configuration with --model")
    if any(layer.is_whole for layer in layers):
        raise FinemoeError("its tensors hold whole numbers; expected a router's scores of all experts")
    if num_experts is not None and num_experts != width:
        raise FinemoeError(f"routers output {width} values, not one for each of {num_experts} experts; such a family is not read")
    if top_k > width:
        raise FinemoeError(f"K is {top_k}, but routers output only {width} values")
    dtype = np.uint8 if width <= 256 else np.uint16
    ids: np.ndarray = np.empty((num_rows, len(layers), top_k), dtype)
    weights = np.empty(ids.shape, np.float32)
    probs = np.empty((num_rows, len(layers), width), np.float16)
    for rows, values in blocks_of(layers):
        distributions = _distributions(values.astype(np.float32), rows.start)
        order = np.argsort(-distributions, axis=-1, kind="stable")[..., :top_k]
        ids[rows], probs[rows] = order, distributions
        weights[rows] = np.take_along_axis(distributions, order, axis=-1)
    return Routing(
        expert_ids=ids,
        weights=weights,
        offsets=np.array([0, num_rows]),
        num_experts=width,
        probs=probs,
        notes=("the K most probable experts are taken as those activated; routers with a bias or groups may choose others",),
    )


def _distributions(values: np.ndarray, first_row: int) -> np.ndarray:
    """Convert values [n, L, J] to distributions over J."""
    if not np.isfinite(values).all():
        row, layer, _ = np.unravel_index(int(np.argmin(np.isfinite(values))), values.shape)
        raise FinemoeError(f"token {first_row + row}, layer {layer}: a value is not finite; logits are finite numbers")
    is_share = ((values >= 0) & (values <= 1)).all(axis=-1)
    sums_to_one = np.abs(values.sum(axis=-1) - 1) <= _TOLERANCE
    if (odd := is_share & ~sums_to_one).all(axis=0).any():
        row, layer = np.unravel_index(int(np.argmax(odd)), odd.shape)
        told = f"are in 0..1 and sum to {values[row, layer].sum():.3g}"
        raise FinemoeError(
            f"token {first_row + row}, layer {layer}: values {told}: neither logits nor a distribution; this is not supported"
        )
    is_distribution = (is_share & sums_to_one).all(axis=0)  # per layer
    shifted = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.where(is_distribution[:, None], values, shifted / shifted.sum(axis=-1, keepdims=True))
