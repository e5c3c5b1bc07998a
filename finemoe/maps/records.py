"""Records to be added to an Expert Map Store, in its fixed-point format (`maps.store`)."""

from dataclasses import dataclass

import numpy as np

from finemoe.maps.kernels import EMBEDDING_SCALE, MAP_SCALE, accumulate_dots_of_rows


@dataclass(frozen=True)
class Records:
    """n maps and unit embeddings, with the values that a store keeps for each.

    Attributes:
        maps: [n, L, J]; units: [n, h]. norms: [n] norms of the maps.
        map_codes: [n, L, J] uint16; inverse_prefix_norms: [n, L] of the encoded maps, up to each layer.
        embedding_codes: [n, h] int16; inverse_embedding_norms: [n], 0 for a zero embedding.
    """

    maps: np.ndarray
    units: np.ndarray
    norms: np.ndarray
    map_codes: np.ndarray
    inverse_prefix_norms: np.ndarray
    embedding_codes: np.ndarray
    inverse_embedding_norms: np.ndarray

    @classmethod
    def of(cls, maps: np.ndarray, units: np.ndarray) -> "Records":
        """Encode maps [n, L, J] and unit embeddings [n, h], float32."""
        codes = np.rint(np.minimum(maps, 1.0) / MAP_SCALE).astype(np.uint16)  # rounded probabilities may slightly exceed 1
        squares = np.square(codes.astype(np.float32) * MAP_SCALE).sum(axis=2)
        embedding_codes = np.rint(units / EMBEDDING_SCALE).astype(np.int16)
        lengths = _lengths(embedding_codes.astype(np.float32) * EMBEDDING_SCALE)
        inverse = np.divide(np.float32(1.0), lengths, out=np.zeros_like(lengths), where=lengths > 0)
        inverse_prefix_norms = 1.0 / np.sqrt(np.cumsum(squares, axis=1))
        return cls(maps, units, _lengths(maps), codes, inverse_prefix_norms, embedding_codes, inverse)

    def __len__(self) -> int:
        return len(self.maps)

    def own_map_dots(self) -> np.ndarray:
        """Dot products of the maps with each other as a store computes them, [n, n]: of map i with record k."""
        return _dots(self.map_codes, self.maps * MAP_SCALE)

    def own_embedding_dots(self) -> np.ndarray:
        """Dot products of the embeddings with each other, likewise."""
        return _dots(self.embedding_codes, self.units * EMBEDDING_SCALE)


def _lengths(vectors: np.ndarray) -> np.ndarray:
    """Norms of vectors [n, ...] as `np.linalg.norm` computes them one by one, [n] float32."""
    rows = (np.ravel(vector) for vector in vectors)
    return np.sqrt(np.array([row.dot(row) for row in rows], dtype=np.float32))


def _dots(codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    dots = np.zeros((len(weights), len(codes)), dtype=np.float32)
    num_values = int(np.prod(codes.shape[1:]))
    kept = np.ascontiguousarray(codes.reshape(len(codes), num_values).T)
    accumulate_dots_of_rows(kept, weights.reshape(len(weights), num_values), len(codes), dots)
    return dots
