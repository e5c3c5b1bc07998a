"""Requests whose routing comes whole, put together one after the other in as few bytes as they need."""

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
        """One request.

        Args:
            ids: [n, L, K] ints of at least 0. weights: [n, L, K] numbers, or None.
            num_prompt: how many rows at the beginning are of its prompt; None if nobody knows.
            name: what it is called; its number by default.
        Raises:
            FinemoeError: of another shape than earlier requests, or ids or numbers that cannot be.
        """
        require_request(ids, num_prompt)
        if self.ids and ids.shape[1:] != self.ids[0].shape[1:]:
            raise FinemoeError(
                f"has {told(ids)}, but the first request {told(self.ids[0])}; requests of one file are of one model"
            )
        if weights is not None and weights.shape != ids.shape:
            raise FinemoeError(f"has weights of shape {list(weights.shape)} for ids of shape {list(ids.shape)}")
        if self.ids and (weights is None) == bool(self.weights):
            raise FinemoeError("has weights where earlier requests have none, or none where they have; give all of them or none")
        if self.ids and (num_prompt is None) != (self.prompts[0] is None):
            raise FinemoeError("says how long its prompt is where earlier requests do not, or the other way round; say it of all")
        self.ids.append(ids.astype(np.uint8 if ids.size and ids.max() < 256 else np.uint16))
        if weights is not None:
            self.weights.append(weights.astype(np.float32))
        self.prompts.append(num_prompt)
        self.names.append(len(self.names) if name is None else name)

    def routing(self, **details: Any) -> Routing:
        """All requests. details: further fields of `Routing`.

        Raises:
            FinemoeError: there was none.
        """
        if not self.ids:
            raise FinemoeError("it holds no request with routing")
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
    """The pieces as one array; they are taken from the list as they are copied."""
    dtype = max((piece.dtype for piece in pieces), key=lambda kind: kind.itemsize)
    whole = np.empty((sum(len(piece) for piece in pieces), *pieces[0].shape[1:]), dtype)
    end = len(whole)
    while pieces:
        piece = pieces.pop()
        whole[end - len(piece) : end] = piece
        end -= len(piece)
    return whole


def require_request(ids: np.ndarray, num_prompt: int | None) -> None:
    """Refuse ids that are no request's routing.

    Raises:
        FinemoeError: says what they are.
    """
    if ids.ndim != 3 or ids.dtype.kind not in "iu" or not ids.size:
        raise FinemoeError(
            f"has experts of shape {list(ids.shape)} and type {ids.dtype}; expected whole numbers [tokens, layers, K]"
        )
    if ids.min() < 0:
        token, layer, _ = np.unravel_index(int(np.argmin(ids)), ids.shape)
        raise FinemoeError(f"token {token}, layer {layer}: expert {ids.min()} says that this token's routing was not recorded")
    if ids.max() > np.iinfo(np.uint16).max:
        raise FinemoeError(f"has expert {ids.max()}; no layer has so many")
    if num_prompt is not None and not 0 <= num_prompt <= len(ids):
        raise FinemoeError(f"has {len(ids)} tokens, but {num_prompt} of its prompt")


def told(ids: np.ndarray) -> str:
    """The shape of [n, L, K] ids, for people."""
    return f"{ids.shape[1]} layers x {ids.shape[2]} experts"
