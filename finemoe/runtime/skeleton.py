"""A model with all weights except its experts, which go from the checkpoint straight to their records."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from finemoe.errors import FinemoeError
from finemoe.models.layers import MoELayer, find_moe_layers
from finemoe.packing.codec import Plain
from finemoe.runtime.attachment import require_possible
from finemoe.runtime.checkpoint import Checkpoint
from finemoe.runtime.engine import Engine
from finemoe.runtime.expert_layout import ExpertLayout
from finemoe.runtime.fit import require_fit
from finemoe.runtime.gguf_checkpoint import GgufCheckpoint
from finemoe.runtime.guards import require_offloadable
from finemoe.runtime.offloading import identity_of, policy_setup
from finemoe.runtime.options import EngineOptions
from finemoe.runtime.packing import Matrix, Packing, packing_matrices
from finemoe.runtime.pretrained import model_without_experts
from finemoe.runtime.profile import Profile
from finemoe.runtime.tiers import ExpertStore


class Skeleton:
    """A model without its experts.

    Args:
        source: a checkpoint's folder or hub id.
        dtype: type of the weights; "auto" for the checkpoint's own.
        expert_format: format to pack the experts into; None keeps them unchanged.
    Raises:
        FinemoeError: `model_without_experts` refuses the source, or the model has no experts to offload.
    """

    _checkpoint: Checkpoint | GgufCheckpoint

    def __init__(self, source: str | Path, dtype: Any, expert_format: str | None = None) -> None:
        self._expert_format = expert_format
        model, self._checkpoint = model_without_experts(str(source), dtype)
        self._take(model)

    def _take(self, model: Any) -> None:
        self.model = model
        self.layers = find_moe_layers(model)
        for layer in self.layers:
            _drop(layer)
        require_offloadable(model)

    def load(self, options: EngineOptions, told: dict[str, Any], progress: bool) -> tuple[PreTrainedModel, Engine]:
        """Read the experts and attach an engine.

        Args:
            options: how the engine runs.
            told: arguments of `policy_setup` other than the model and its layers.
            progress: show a progress bar.
        """
        is_cuda = options.devices[0].type == "cuda"
        layouts = self._layouts(is_cuda)
        require_fit(self.model, layouts, sum(layer.num_experts for layer in self.layers), options)
        require_possible(self.layers, layouts, policy_setup(self.model, self.layers, **(told | {"history": None})), options)
        records = self.read_experts(is_cuda, options.host_bytes, options.disk_folder, progress)
        try:
            setup = policy_setup(self.model, self.layers, **told)
            return self.model, Engine(self.model, self.layers, setup, options, records)
        except BaseException:
            records.close()
            raise

    def require_profile(self, path: str | Path) -> None:
        """Refuse a warm-up profile of another model before the experts are read.

        Raises:
            FinemoeError: it is of another model, missing or damaged.
        """
        shape = len(self.layers), max(layer.num_experts for layer in self.layers)
        Profile.load(path).require_model(path, identity_of(self.model, self.layers), shape)

    def read_experts(
        self,
        pinned: bool,
        host_bytes: int | None = None,
        disk_folder: str | Path | None = None,
        progress: bool = False,
        is_sure: bool = False,
    ) -> ExpertStore:
        """Read the experts into a store; arguments as in ExpertStore."""
        counts = [layer.num_experts for layer in self.layers]
        records = ExpertStore(self._layouts(pinned), counts, host_bytes, pinned, disk_folder, is_sure)
        try:
            self._read(records, progress)
        except BaseException:
            records.close()
            raise
        return records

    def _layouts(self, is_cuda: bool) -> list[ExpertLayout]:
        return [self._layout(layer, is_cuda) for layer in self.layers]

    def _layout(self, layer: MoELayer, is_cuda: bool) -> ExpertLayout:
        plain = ExpertLayout.of(layer, None if is_cuda else self._phases(layer))
        matrices = self._matrices(layer)
        if self._expert_format is not None:
            if matrices is not None and not all(isinstance(matrix.codec, Plain) for matrix in matrices):
                raise FinemoeError(f"this checkpoint's experts are already packed; omit expert_format={self._expert_format!r}")
            matrices = packing_matrices(layer, self._expert_format)
        return plain if matrices is None else ExpertLayout.packed(Packing(matrices, plain))

    def _phases(self, layer: MoELayer) -> dict[str, int]:
        """Phases (see `expert_layout`) of a layer's weights on the CPU had Transformers loaded them, by parameter name."""
        return self._checkpoint.phases(layer)

    def _matrices(self, layer: MoELayer) -> tuple[Matrix, ...] | None:
        """How a layer's experts are packed; None if they are not."""
        return self._checkpoint.matrices(layer)

    @torch.no_grad()
    def _read(self, records: ExpertStore, progress: bool) -> None:
        self._checkpoint.load_experts(self.layers, records, progress)


def _drop(layer: MoELayer) -> None:
    """Leave a layer's expert parameters without memory, as `takeover.empty` does for parameters that have some.

    Raises:
        FinemoeError: Transformers would store them in a memory order that records do not keep.
    """
    for name, parameter in layer.expert_parameters().items():
        if not parameter.is_contiguous():
            raise FinemoeError(
                f"{layer.name}.{name} would not be contiguous in memory, which a record cannot keep; load the model with "
                "from_pretrained, make its parameters contiguous, and use finemoe.offload"
            )
        nothing = torch.full((), float("nan"), dtype=parameter.dtype, device="cpu").expand(parameter.shape)
        setattr(layer.experts, name, nn.Parameter(nothing, requires_grad=parameter.requires_grad))
