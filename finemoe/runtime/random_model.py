"""A model of any size with random weights, built without holding its experts in memory twice (DESIGN 7.3, `random:CONFIG`)."""

from typing import Any

import torch
from tqdm.auto import tqdm
from transformers.initialization import no_init_weights

from finemoe.errors import FinemoeError
from finemoe.models.geometry import config_of
from finemoe.models.layers import MoELayer
from finemoe.packing.methods import quantization_of
from finemoe.runtime.packing import Matrix, matrices_as_published
from finemoe.runtime.pretrained import class_of, reason_of, type_of
from finemoe.runtime.quantization import require_known
from finemoe.runtime.skeleton import Skeleton
from finemoe.runtime.tiers import ExpertStore

_DEVIATION = 0.02  # standard deviation of the weights, as in Transformers' initialisation


class RandomModel(Skeleton):
    """A model built from a configuration alone.

    Args:
        source: a folder, config.json or hub id.
        dtype: type of the weights; "auto" is the configuration's.
        seed: seed of the weights.
        expert_format: format to pack the experts into; None keeps them unchanged.
    Raises:
        FinemoeError: the configuration does not exist, or the model has no experts to offload.
    """

    def __init__(self, source: str, dtype: Any, seed: int = 0, expert_format: str | None = None) -> None:
        self._seed, self._expert_format = seed, expert_format
        config = config_of(source)
        self._told = _quantization_taken_from(config, source)
        own = config.dtype or config.get_text_config().dtype or torch.float32
        self._dtype = type_of(own if dtype == "auto" else dtype)
        torch.manual_seed(seed)
        found = class_of(config)
        make = getattr(found, "_from_config", None) or found.from_config  # for a model class, and for an Auto class
        # Allocated memory that is never written costs nothing: the experts' parameters are dropped before they are written.
        try:
            with no_init_weights():
                model = make(config, dtype=self._dtype, experts_implementation="eager")
        except ValueError as error:
            raise FinemoeError(f"{source}: no model can be built from this configuration: {reason_of(error)}") from error
        model.name_or_path = source
        self._take(model.eval())

    def _phases(self, layer: MoELayer) -> dict[str, int]:
        return {}

    def _matrices(self, layer: MoELayer) -> tuple[Matrix, ...] | None:
        """As in the configuration's quantisation, so that records are as large as those of the real checkpoint."""
        return None if self._told is None else matrices_as_published(self.model, layer, self._told)

    @torch.no_grad()
    def _read(self, records: ExpertStore, progress: bool) -> None:
        """Fill the records with random values, made on the GPU if there is one, which is a hundred times faster; all other
        weights stay there."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        generator = torch.Generator(device).manual_seed(self._seed)
        self._move_rest(device)
        self._initialize_rest()
        for layer in tqdm(self.layers, desc="making experts", unit="layer", disable=not progress):
            shapes = {name: tuple(parameter.shape[1:]) for name, parameter in layer.expert_parameters().items()}
            for expert in range(layer.num_experts):
                records.write(
                    layer.index, expert, {name: self._random(shape, device, generator) for name, shape in shapes.items()}
                )

    def _move_rest(self, device: torch.device) -> None:
        experts = {id(parameter) for layer in self.layers for parameter in layer.expert_parameters().values()}
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            if id(tensor) not in experts:
                tensor.data = tensor.data.to(device)

    def _initialize_rest(self) -> None:
        """Initialise every weight and buffer except the experts' as Transformers does."""
        for layer in self.layers:
            for parameter in layer.expert_parameters().values():
                parameter._is_hf_initialized = True  # type: ignore[attr-defined]
        self.model.initialize_weights()

    def _random(self, shape: Any, device: torch.device, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=self._dtype).mul_(_DEVIATION)


def _quantization_taken_from(config: Any, source: str) -> dict[str, Any] | None:
    """Remove the quantisation from a configuration, so that the model is built unpacked, and return it."""
    told = quantization_of(config)
    if told is not None:
        require_known(told, source)
        for part in (config, config.get_text_config()):
            part.__dict__.pop("quantization_config", None)
    return told
