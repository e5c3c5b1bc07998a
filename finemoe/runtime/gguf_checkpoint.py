"""Reads the experts of a GGUF file straight into the records that store them, packed as in the file."""

from collections.abc import Sequence

import torch
from tqdm.auto import tqdm

from finemoe.models.layers import MoELayer
from finemoe.packing.codec import Plain
from finemoe.runtime.gguf_file import GgufFile
from finemoe.runtime.gguf_parts import GgufPart, parts_of
from finemoe.runtime.packing import Matrix
from finemoe.runtime.tiers import ExpertStore


class GgufCheckpoint:
    """The experts of a file: the counterpart of `checkpoint.Checkpoint`.

    Args:
        file: the file.
        arithmetic: type in which Transformers unpacks the file's blocks.
    """

    def __init__(self, file: GgufFile, arithmetic: torch.dtype) -> None:
        self._file, self._arithmetic = file, arithmetic

    def phases(self, layer: MoELayer) -> dict[str, int]:
        """Empty: there are no phases to keep (see `expert_layout`), since Transformers reads a file into new memory."""
        return {}

    def matrices(self, layer: MoELayer) -> tuple[Matrix, ...] | None:
        """How the file packs a layer's experts; None if it holds them as the layer computes with them.

        Raises:
            FinemoeError: the file lacks some, or has them in another shape or in a type that cannot be unpacked.
        """
        matrices = tuple(part.matrix for part in self._parts(layer))
        dtypes = {parameter.dtype for parameter in layer.expert_parameters().values()}
        is_ready = all(isinstance(one.codec, Plain) and {one.codec.dtype} == dtypes for one in matrices)
        return None if is_ready else matrices

    def load_experts(self, layers: Sequence[MoELayer], records: ExpertStore, progress: bool) -> None:
        """Load the experts of all layers into their records, one at a time."""
        for layer in tqdm(layers, desc="loading experts", unit="layer", disable=not progress):
            parts, packing = self._parts(layer), records.layouts[layer.index].packing
            is_packed = packing is not None and packing.matrices == tuple(part.matrix for part in parts)
            for expert in range(layer.num_experts):
                if is_packed:
                    records.write_record(layer.index, expert, dict(part.packed(self._file, expert) for part in parts))
                else:
                    records.write(layer.index, expert, self._joined(parts, expert))
                self._file.close()

    def _parts(self, layer: MoELayer) -> list[GgufPart]:
        return parts_of(self._file, layer, self._arithmetic)

    def _joined(self, parts: list[GgufPart], expert: int) -> dict[str, torch.Tensor]:
        """An expert's parameters by name, if they are not packed."""
        rows: dict[str, list[torch.Tensor]] = {}
        for part in parts:
            rows.setdefault(part.matrix.parameter, []).append(part.packed(self._file, expert)[1])
        return {name: torch.cat(found) for name, found in rows.items()}
