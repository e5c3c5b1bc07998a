"""Expert Map Store: up to C records of an expert map and a semantic embedding (section 4.4, Fig. 5).

Maps are stored as 16-bit fixed point (step 1/65535) and unit embeddings as signed 16 bits, which changes a cosine by less than
1e-4. A record takes 2·(L·J + h) bytes, and 4·(L + 1) for its norms: prefix norms are stored per layer for incremental search
(search.py).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.files import load_arrays, save_arrays
from finemoe.maps.kernels import EMBEDDING_SCALE, MAP_SCALE, accumulate_dots_of_rows
from finemoe.maps.records import Records
from finemoe.plain import plain_array, text, whole_number

_KIND = "expert-map-store"
_VERSION = 1
_MAP_CODE, _EMBEDDING_CODE = np.dtype(np.uint16), np.dtype(np.int16)
_Count = TypeVar("_Count", int, np.ndarray)
_TOGETHER = 32  # number of rows whose similarities are computed together


class ExpertMapStore:
    """A bounded collection of (map, embedding) records with redundancy-based replacement.

    Args:
        num_layers, num_experts: L and J of the model.
        embedding_dim: h, or 0 without embeddings (top-k traces): redundancy then uses only the maps.
        capacity: C, the maximum number of records.
        prefetch_distance: d, which weighs semantic against trajectory similarity in RDY.
        model: identity of the model whose maps these are; checked on loading.
    Raises:
        FinemoeError: a size is out of range.
    """

    def __init__(
        self,
        num_layers: int,
        num_experts: int,
        embedding_dim: int,
        capacity: int = 1000,
        prefetch_distance: int = 3,
        model: str = "",
    ) -> None:
        num_layers, num_experts = whole_number("num_layers", num_layers), whole_number("num_experts", num_experts)
        embedding_dim, capacity = whole_number("embedding_dim", embedding_dim, least=0), whole_number("capacity", capacity)
        prefetch_distance, model = whole_number("prefetch_distance", prefetch_distance, least=0), text("model", model)
        if not 1 <= prefetch_distance <= num_layers:
            raise FinemoeError(f"prefetch_distance is {prefetch_distance}; it must be in 1..{num_layers} (the number of layers)")
        self.num_layers, self.num_experts, self.embedding_dim = num_layers, num_experts, embedding_dim
        self.capacity, self.prefetch_distance, self.model = capacity, prefetch_distance, model
        try:
            self.map_codes = np.zeros((num_layers, num_experts, capacity), dtype=_MAP_CODE)
            self.embedding_codes = np.zeros((embedding_dim, capacity), dtype=_EMBEDDING_CODE)
            self.inverse_prefix_norms = np.zeros((num_layers, capacity), dtype=np.float32)
            self.inverse_embedding_norms = np.zeros(capacity, dtype=np.float32)
        except (MemoryError, ValueError) as error:  # ValueError if NumPy cannot even represent the size
            raise FinemoeError(f"capacity is {capacity}: not enough memory for so many maps ({error}); choose less") from error
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def nbytes(self) -> int:
        """Bytes of all records at full capacity."""
        arrays = (self.map_codes, self.embedding_codes, self.inverse_prefix_norms, self.inverse_embedding_norms)
        return sum(array.nbytes for array in arrays)

    def maps(self) -> np.ndarray:
        """The stored maps, [n, L, J] float32."""
        return self.map_codes[:, :, : len(self)].transpose(2, 0, 1).astype(np.float32) * MAP_SCALE

    def embeddings(self) -> np.ndarray:
        """The stored embeddings, [n, h] float32, each of length 1."""
        return self.embedding_codes[:, : len(self)].T.astype(np.float32) * EMBEDDING_SCALE

    def add(self, maps: np.ndarray, embeddings: np.ndarray | None = None) -> None:
        """Add records one after the other; at capacity, each replaces the record it is most redundant with (4.4).

        Args:
            maps: [n, L, J]; embeddings: [n, h], or None in a store without embeddings. Arrays, or any sequences of numbers.
        Raises:
            FinemoeError: they cannot be converted, shapes differ from the store's, or a map row is not a distribution.
        """
        maps = _single("maps", maps)
        self._check_maps(maps)
        units = self._unit_embeddings(embeddings, len(maps))
        free = self.capacity - len(self)
        self._fill(Records.of(maps[:free], units[:free]))
        for begin in range(free, len(maps), _TOGETHER):
            rows = slice(begin, begin + _TOGETHER)
            self._replace(Records.of(maps[rows], units[rows]))

    def redundancy(self, map_: np.ndarray, unit_embedding: np.ndarray) -> np.ndarray:
        """RDY = d/L · semantic score + (L-d)/L · trajectory score of a record with every stored one, [n] (4.4)."""
        return self._redundancy(
            self._map_dots(map_[None])[0], np.linalg.norm(map_), self._embedding_dots(unit_embedding[None])[0]
        )

    def nearest_embeddings(self, embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Eq. 4 for a batch: the nearest stored embedding of each row and its cosine.

        Args:
            embeddings: [B, h], of any length.
        Returns:
            neighbours [B] int64 and scores [B] float32.
        Raises:
            FinemoeError: the store is empty, or the embeddings have another size than the store's.
        """
        if not len(self):
            raise FinemoeError("the store is empty, so there is no nearest record; add records first")
        embeddings = _single("embeddings", embeddings)
        units = self._unit_embeddings(embeddings, len(embeddings) if embeddings.ndim else 1)
        neighbours = np.empty(len(units), dtype=np.int64)
        scores = np.empty(len(units), dtype=np.float32)
        for begin in range(0, len(units), _TOGETHER):
            rows = slice(begin, begin + _TOGETHER)
            cosines = self._embedding_dots(units[rows]) * self.inverse_embedding_norms[: len(self)]
            neighbours[rows] = best = cosines.argmax(axis=1)
            scores[rows] = cosines[np.arange(len(best)), best]
        return neighbours, scores

    def state(self) -> dict[str, np.ndarray]:
        """The records, by the names of the arrays that hold them; the last axis counts records."""
        used = len(self)
        return {
            "map_codes": self.map_codes[:, :, :used],
            "embedding_codes": self.embedding_codes[:, :used],
            "inverse_prefix_norms": self.inverse_prefix_norms[:, :used],
            "inverse_embedding_norms": self.inverse_embedding_norms[:used],
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Hold the records of another store's `state` instead, as many as fit.

        Raises:
            FinemoeError: they are of a model with other sizes.
        """
        kept = {name: state[name][..., : self.capacity] for name in self.state()}
        for name, array in kept.items():
            if array.shape[:-1] != getattr(self, name).shape[:-1]:
                raise FinemoeError(f"the stored {name} are of shape {array.shape[:-1]}, not {getattr(self, name).shape[:-1]}")
        self._size = kept["map_codes"].shape[-1]
        for name, array in kept.items():
            getattr(self, name)[..., : len(self)] = array

    def save(self, path: str | Path) -> None:
        """Write the store to one file, atomically."""
        meta = {
            "num_layers": self.num_layers,
            "num_experts": self.num_experts,
            "embedding_dim": self.embedding_dim,
            "capacity": self.capacity,
            "prefetch_distance": self.prefetch_distance,
            "model": self.model,
        }
        save_arrays(path, _KIND, _VERSION, self.state(), meta)

    @classmethod
    def load(cls, path: str | Path, model: str | None = None) -> "ExpertMapStore":
        """Read a store that `save` wrote.

        Args:
            model: if given, the identity that the store's model must have.
        Raises:
            FinemoeError: the file is missing, truncated, damaged, of another format, or of another model.
        """
        arrays, meta = load_arrays(path, _KIND, _VERSION)
        if model is not None and meta["model"] != model:
            raise FinemoeError(f"{path}: holds maps of {meta['model']!r}, not of {model!r}; build a store for this model")
        store = cls(**meta)
        store.restore(arrays)
        return store

    def _unit_embeddings(self, embeddings: np.ndarray | None, num_rows: int) -> np.ndarray:
        if embeddings is None:
            embeddings = np.zeros((num_rows, 0), dtype=np.float32)
        embeddings = _single("embeddings", embeddings)
        if embeddings.shape != (num_rows, self.embedding_dim):
            raise FinemoeError(f"embeddings must be {(num_rows, self.embedding_dim)}, not {embeddings.shape}")
        if not np.isfinite(embeddings).all():
            raise FinemoeError("embeddings hold NaN, infinity or values that overflow 32 bits; they must be finite")
        _, exponents = np.frexp(np.abs(embeddings).max(axis=-1, keepdims=True, initial=0.0))
        embeddings = np.ldexp(embeddings, -exponents)  # exact, so that squares neither overflow nor underflow
        return embeddings / np.maximum(np.linalg.norm(embeddings, axis=-1, keepdims=True), 1e-20)

    def _check_maps(self, maps: np.ndarray) -> None:
        if maps.shape[1:] != (self.num_layers, self.num_experts):
            raise FinemoeError(f"maps must be [n, {self.num_layers}, {self.num_experts}], not {maps.shape}")
        if not (np.abs(maps.sum(axis=-1) - 1) < 0.02).all() or (maps < 0).any():
            raise FinemoeError(
                "a map row is not a distribution (not negative, sum 1); maps hold the gate's distribution over all experts"
            )

    def _map_dots(self, maps: np.ndarray) -> np.ndarray:
        """Dot products of maps [n, L, J] with every stored one, [n, len(self)] float32."""
        return self._dots(self.map_codes.reshape(-1, self.capacity), maps.reshape(len(maps), -1) * MAP_SCALE)

    def _embedding_dots(self, units: np.ndarray) -> np.ndarray:
        """Dot products of unit embeddings [n, h] with every stored one, [n, len(self)] float32."""
        return self._dots(self.embedding_codes, np.asarray(units, dtype=np.float32) * EMBEDDING_SCALE)

    def _dots(self, codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
        dots = np.zeros((len(weights), len(self)), dtype=np.float32)
        accumulate_dots_of_rows(codes, weights, len(self), dots)
        return dots

    def _redundancy(self, map_dots: np.ndarray, map_norm: np.floating, embedding_dots: np.ndarray) -> np.ndarray:
        scores = map_dots * self.inverse_prefix_norms[-1, : len(self)] / map_norm
        if not self.embedding_dim:
            return scores
        share = self.prefetch_distance / self.num_layers
        return share * (embedding_dots * self.inverse_embedding_norms[: len(self)]) + (1 - share) * scores

    def _fill(self, records: Records) -> None:
        """Put records into free places."""
        places = slice(len(self), len(self) + len(records))
        self.map_codes[:, :, places] = records.map_codes.transpose(1, 2, 0)
        self.inverse_prefix_norms[:, places] = records.inverse_prefix_norms.T
        self.embedding_codes[:, places] = records.embedding_codes.T
        self.inverse_embedding_norms[places] = records.inverse_embedding_norms
        self._size += len(records)

    def _replace(self, records: Records) -> None:
        """Replace, for each record in order, the most redundant one, which may be a record added just before."""
        map_dots, embedding_dots = self._map_dots(records.maps), self._embedding_dots(records.units)
        own_map_dots, own_embedding_dots = records.own_map_dots(), records.own_embedding_dots()
        for number in range(len(records)):
            place = int(self._redundancy(map_dots[number], records.norms[number], embedding_dots[number]).argmax())
            self.map_codes[:, :, place] = records.map_codes[number]
            self.inverse_prefix_norms[:, place] = records.inverse_prefix_norms[number]
            self.embedding_codes[:, place] = records.embedding_codes[number]
            self.inverse_embedding_norms[place] = records.inverse_embedding_norms[number]
            map_dots[number + 1 :, place] = own_map_dots[number + 1 :, number]
            embedding_dots[number + 1 :, place] = own_embedding_dots[number + 1 :, number]


def semantic_search_bytes(num_maps: _Count, embedding_dim: int) -> _Count:
    """Bytes that Eq. 4 reads for one row (`ExpertMapStore.nearest_embeddings`) in a store of `num_maps`: all embeddings."""
    return num_maps * embedding_dim * _EMBEDDING_CODE.itemsize


def trajectory_search_bytes(num_maps: _Count, num_experts: int) -> _Count:
    """Bytes that Eq. 5 reads for one row at one layer (`TrajectorySearch.observe`): that layer of every stored map."""
    return num_maps * num_experts * _MAP_CODE.itemsize


def _single(name: str, values: np.ndarray) -> np.ndarray:
    """Convert to a single-precision array; overflows are left for the checks to report."""
    with np.errstate(over="ignore"):
        return plain_array(name, values).astype(np.float32, copy=False)
