"""A model of any size with random weights, made without its experts ever being in memory twice (DESIGN 7.3, `random:CONFIG`)."""

from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from finemoe.maps.geometry import config_of
from finemoe.runtime.layers import MoELayer
from finemoe.runtime.skeleton import Skeleton
from finemoe.runtime.tiers import RecordStore

_DEVIATION = 0.02  # of the weights, as in Transformers' own initialisation


class RandomModel(Skeleton):
    """A model built from a configuration alone.

    Args:
        source: a folder, config.json or hub id. dtype: of the weights; "auto" is the configuration's. seed: of the weights.
    Raises:
        FinemoeError: there is no such configuration, or the model has no experts to offload.
    """

    def __init__(self, source: str, dtype: str | torch.dtype, seed: int = 0) -> None:
        self._folder, self._seed = Path(source), seed
        torch.manual_seed(seed)
        self._build(config_of(source), dtype)

    def _phases(self, layer: MoELayer) -> dict[str, int]:
        return {}

    @torch.no_grad()
    def _read(self, records: RecordStore, progress: bool) -> None:
        """Random values instead of a checkpoint's, made on the GPU where there is one, which is a hundred times faster at it; all
        but the experts stays there."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        generator = torch.Generator(device).manual_seed(self._seed)
        self._move_rest(device)
        self._initialize_buffers()  # and every weight but the experts', which no checkpoint holds here
        for layer in tqdm(self.layers, desc="making experts", unit="layer", disable=not progress):
            shapes = {field.name: field.shape for field in records.layouts[layer.index].fields}
            for expert in range(layer.num_experts):
                records.write(
                    layer.index, expert, {name: self._random(shape, device, generator) for name, shape in shapes.items()}
                )

    def _move_rest(self, device: torch.device) -> None:
        experts = {id(parameter) for layer in self.layers for parameter in layer.expert_parameters().values()}
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            if id(tensor) not in experts:
                tensor.data = tensor.data.to(device)

    def _random(self, shape: Any, device: torch.device, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=self._dtype).mul_(_DEVIATION)
