"""Collect requests whose routing is known as a whole and concatenate them in the narrowest type that holds them."""

from typing import Any

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.importers.routing import Routing


class Gathering:
    """Routing of requests, in the order in which they are added."""

    def __init__(self) -> None:
        self.ids: list[np.ndarray] = []
        self.weights: list[np.ndarray] = []
        self.prompts: list[int | None] = []
        self.names: list[Any] = []

    def add(self, ids: np.ndarray, weights: np.ndarray | None = None, num_prompt: int | None = None, name: Any = None) -> None:
        """Add a request.

        Args:
            ids: [n, L, K] ints of at least 0. weights: [n, L, K] numbers, or None.
            num_prompt: number of rows at the start that belong to its prompt; None if unknown.
            name: name of the request; its number by default.
        Raises:
            FinemoeError: the shape differs from earlier requests, or ids or weights are invalid.
        """
        require_request(ids, num_prompt)
        if self.ids and ids.shape[1:] != self.ids[0].shape[1:]:
            raise FinemoeError(
                f"has {told(ids)}, but the first request {told(self.ids[0])}; requests of one file are of one model"
            )
        if weights is not None and weights.shape != ids.shape:
            raise FinemoeError(f"has weights of shape {list(weights.shape)} for ids of shape {list(ids.shape)}")
        if self.ids and (weights is None) == bool(self.weights):
            raise FinemoeError("has weights but earlier requests have none, or the reverse; give weights for all or for none")
        if self.ids and (num_prompt is None) != (self.prompts[0] is None):
            raise FinemoeError("states its prompt length but earlier requests do not, or the reverse; state it for all or none")
        self.ids.append(ids.astype(np.uint8 if ids.size and ids.max() < 256 else np.uint16))
        if weights is not None:
            self.weights.append(weights.astype(np.float32))
        self.prompts.append(num_prompt)
        self.names.append(len(self.names) if name is None else name)

    def routing(self, **details: Any) -> Routing:
        """All requests together. details: further fields of `Routing`.

        Raises:
            FinemoeError: there were none.
        """
        if not self.ids:
            raise FinemoeError("has no request with routing")
        lengths = np.array([len(ids) for ids in self.ids])
        offsets = np.append(0, np.cumsum(lengths))
        is_prompt = None
        if None not in self.prompts:
            place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
            is_prompt = place < np.repeat(np.array(self.prompts, dtype=np.int64), lengths)
        weights = joined(self.weights) if self.weights else None
        details = {"request_ids": tuple(self.names)} | details
        return Routing(expert_ids=joined(self.ids), weights=weights, offsets=offsets, is_prompt=is_prompt, **details)


def joined(pieces: list[np.ndarray]) -> np.ndarray:
    """Concatenate the pieces; each is removed from the list once it is copied."""
    dtype = max((piece.dtype for piece in pieces), key=lambda kind: kind.itemsize)
    whole = np.empty((sum(len(piece) for piece in pieces), *pieces[0].shape[1:]), dtype)
    end = len(whole)
    while pieces:
        piece = pieces.pop()
        whole[end - len(piece) : end] = piece
        end -= len(piece)
    return whole


def require_request(ids: np.ndarray, num_prompt: int | None) -> None:
    """Refuse ids that cannot be the routing of a request.

    Raises:
        FinemoeError: describes them.
    """
    if ids.ndim != 3 or ids.dtype.kind not in "iu" or not ids.size:
        raise FinemoeError(
            f"has experts of shape {list(ids.shape)} and type {ids.dtype}; expected whole numbers [tokens, layers, K]"
        )
    if ids.min() < 0:
        token, layer, _ = np.unravel_index(int(np.argmin(ids)), ids.shape)
        raise FinemoeError(f"token {token}, layer {layer}: expert {ids.min()} means that this token's routing was not recorded")
    if ids.max() > np.iinfo(np.uint16).max:
        raise FinemoeError(f"has expert {ids.max()}; no layer has so many")
    if num_prompt is not None and not 0 <= num_prompt <= len(ids):
        raise FinemoeError(f"has {len(ids)} tokens, but {num_prompt} prompt tokens")


def told(ids: np.ndarray) -> str:
    """The shape of [n, L, K] ids in words."""
    return f"{ids.shape[1]} layers x {ids.shape[2]} experts"
