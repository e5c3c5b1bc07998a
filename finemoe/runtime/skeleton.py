"""A model built from its configuration with every weight but the experts', which go from the checkpoint to their records."""

import re
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from finemoe.errors import FinemoeError
from finemoe.runtime.checkpoint import Checkpoint, Shards, load_experts, load_together
from finemoe.runtime.engine import Engine, require_possible
from finemoe.runtime.guards import require_offloadable
from finemoe.runtime.layers import MoELayer, find_moe_layers
from finemoe.runtime.offloading import policy_setup
from finemoe.runtime.options import engine_options
from finemoe.runtime.records import RecordLayout
from finemoe.runtime.takeover import empty
from finemoe.runtime.tiers import RecordStore


class Skeleton:
    """A model without its experts.

    Args:
        folder: the checkpoint; dtype: of the weights, "auto" for the checkpoint's own.
    Raises:
        FinemoeError: the folder's configuration is missing or unknown, or the model has no experts to offload.
    """

    def __init__(self, folder: Path, dtype: str | torch.dtype) -> None:
        self._folder = folder
        try:
            config = AutoConfig.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise FinemoeError(f"{folder}: no usable configuration: {str(error).strip().splitlines()[0]}") from error
        self._build(config, dtype)
        if (folder / "generation_config.json").is_file() and self.model.can_generate():
            self.model.generation_config = GenerationConfig.from_pretrained(folder)

    def _build(self, config: Any, dtype: str | torch.dtype) -> None:
        self._dtype = _resolve(dtype, config)
        # Memory that is allocated and never written costs nothing: the experts' parameters are dropped before they are touched.
        with no_init_weights():
            self.model = _class_of(config)._from_config(config, dtype=self._dtype, experts_implementation="eager").eval()
        require_offloadable(self.model)
        self.layers = find_moe_layers(self.model)
        for layer in self.layers:
            empty(layer, torch.device("cpu"))
        self.model.name_or_path = str(self._folder)

    def load(
        self,
        expert_memory: int | float | str,
        policy: str,
        host_memory: int | str | None,
        disk_folder: str | Path | None,
        devices: Any,
        progress: bool,
        options: dict[str, Any],
    ) -> tuple[PreTrainedModel, Engine]:
        """Read the checkpoint and attach an engine; arguments as in `finemoe.load`."""
        told = {name: options.pop(name) for name in ("history", "prefetch_distance", "store_capacity", "seed") if name in options}
        engine_told = engine_options(
            expert_memory, policy, host_memory=host_memory, disk_folder=disk_folder, devices=devices, **options
        )
        is_cuda = engine_told.devices[0].type == "cuda"
        layouts = self._layouts(is_cuda)
        require_possible(self.layers, layouts, policy_setup(self.model, self.layers, **(told | {"history": None})), engine_told)
        records = self.read_experts(is_cuda, engine_told.host_bytes, disk_folder, progress)
        try:
            setup = policy_setup(self.model, self.layers, **told)
            return self.model, Engine(self.model, self.layers, setup, engine_told, records)
        except BaseException:
            records.close()
            raise

    def read_experts(
        self,
        pinned: bool,
        host_bytes: int | None = None,
        disk_folder: str | Path | None = None,
        progress: bool = False,
        is_sure: bool = False,
    ) -> RecordStore:
        """Every weight: the experts' into a store, the others' into the model; arguments as RecordStore's."""
        counts = [layer.num_experts for layer in self.layers]
        records = RecordStore(self._layouts(pinned), counts, host_bytes, pinned, disk_folder, is_sure)
        try:
            self._read(records, progress)
        except BaseException:
            records.close()
            raise
        return records

    @cached_property
    def _shards(self) -> Shards:
        return Shards(self._folder)

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(self.model, self._shards)

    def _layouts(self, is_cuda: bool) -> list[RecordLayout]:
        return [RecordLayout.of(layer, None if is_cuda else self._phases(layer)) for layer in self.layers]

    def _phases(self, layer: MoELayer) -> dict[str, int]:
        """Where the CPU would read a layer's weights had Transformers loaded them, by parameter name (see `records`)."""
        return {name: self._checkpoint.phase(f"{layer.name}.{name}", one) for name, one in layer.expert_parameters().items()}

    @torch.no_grad()
    def _read(self, records: RecordStore, progress: bool) -> None:
        shards, checkpoint = self._shards, self._checkpoint
        experts = {f"{layer.name}.{name}" for layer in self.layers for name in layer.expert_parameters()}
        missing = _missing_experts(self.layers, checkpoint)
        if missing:
            raise FinemoeError(
                f"{self._folder}: the checkpoint lacks {missing}; fetch it again, or check that it is this model's"
            )
        self._read_rest(checkpoint, checkpoint.targets() - experts)
        shards.close()
        bar = tqdm(self.layers, desc="loading experts", unit="layer", disable=not progress)
        apart = [layer for layer in bar if not load_experts(checkpoint, shards, layer, records)]
        values: dict[str, torch.Tensor] = {}
        for target in sorted(experts & checkpoint.targets()) if apart else ():
            values |= checkpoint.whole(target)
        load_together(values, apart, records)
        shards.close()

    def _read_rest(self, checkpoint: Checkpoint, targets: set[str]) -> None:
        self._untie(targets)
        tensors = dict([*self.model.named_parameters(remove_duplicate=False), *self.model.named_buffers()])
        missing = set(self.model.state_dict())
        kept = _kept_in_fp32(self.model, self._dtype)
        loaded: set[int] = set()
        for target in sorted(targets):
            for name, value in checkpoint.whole(target).items():
                tensor = tensors[name]
                if value.shape != tensor.shape:
                    shapes = f"{tuple(value.shape)}, the model's configuration {tuple(tensor.shape)}"
                    raise FinemoeError(f"{self._folder}: the checkpoint has {name} of shape {shapes}")
                dtype = torch.float32 if kept is not None and kept.search(name) else tensor.dtype
                tensor.data = value.to(dtype)  # mapped, as from_pretrained leaves it
                tensor._is_hf_initialized = True
                loaded.add(id(tensor))
                missing.discard(name)
        self.model.tie_weights(missing_keys=missing, recompute_mapping=False)
        self._require_all(loaded)
        self._initialize_buffers()

    def _untie(self, targets: set[str]) -> None:
        """A weight that the model shares but the checkpoint holds is read as its own; Transformers then ties what is equal."""
        for name in targets & set(self.model.all_tied_weights_keys):
            module, _, attribute = name.rpartition(".")
            shared = self.model.get_parameter(name)
            setattr(self.model.get_submodule(module), attribute, nn.Parameter(torch.empty_like(shared)))

    def _initialize_buffers(self) -> None:
        """Values that no checkpoint holds (buffers that are not saved) are what Transformers initialises them to."""
        for layer in self.layers:
            for parameter in layer.expert_parameters().values():
                parameter._is_hf_initialized = True  # type: ignore[attr-defined]
        self.model.initialize_weights()

    def _require_all(self, loaded: set[int]) -> None:
        experts = {id(parameter) for layer in self.layers for parameter in layer.expert_parameters().values()}
        ignored = [re.compile(pattern) for pattern in self.model._keys_to_ignore_on_load_missing or ()]
        for name, parameter in self.model.named_parameters():
            if id(parameter) not in loaded | experts and not any(pattern.search(name) for pattern in ignored):
                raise FinemoeError(
                    f"{self._folder}: the checkpoint lacks {name}; fetch it again, or check that it is this model's"
                )


def _missing_experts(layers: list[MoELayer], checkpoint: Checkpoint) -> str | None:
    """The first layer of which the checkpoint has no expert weight at all (a converter may name several of them by the first)."""
    targets = checkpoint.targets()
    for layer in layers:
        if not any(target.startswith(f"{layer.name}.") for target in targets) and not _is_converted_together(layer, targets):
            return f"the experts {layer.name}"
    return None


def _is_converted_together(layer: MoELayer, targets: set[str]) -> bool:
    block = layer.name.rpartition(".")[0].rpartition(".")[0]
    return any(target.startswith(f"{block}.") and ".experts." in target for target in targets)


def _kept_in_fp32(model: PreTrainedModel, dtype: torch.dtype) -> re.Pattern[str] | None:
    """Names that Transformers keeps in fp32 whatever type was asked for."""
    kept = list(model._keep_in_fp32_modules_strict or ()) if dtype in (torch.float16, torch.bfloat16) else []
    kept += list(model._keep_in_fp32_modules or ()) if dtype == torch.float16 else []
    parts = [re.escape(name).replace(r"\*", ".*") for name in kept]
    return re.compile("|".join(rf"(^|\.){part}($|\.)" for part in parts)) if parts else None


def _resolve(dtype: str | torch.dtype, config: Any) -> torch.dtype:
    own = config.dtype or config.get_text_config().dtype or torch.float32
    found = own if dtype == "auto" else dtype
    if isinstance(found, str):
        found = getattr(torch, found, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise FinemoeError(f"unknown dtype {dtype!r}; write 'auto', 'bfloat16', 'float16' or 'float32'")
    return found


def _class_of(config: Any) -> type[PreTrainedModel]:
    """The class the checkpoint was saved from, or the causal language model of its family."""
    for name in config.architectures or ():
        if isinstance(found := getattr(transformers, name, None), type) and issubclass(found, PreTrainedModel):
            return found
    try:
        found = AutoModelForCausalLM._model_mapping[type(config)]
    except KeyError as error:
        raise FinemoeError(f"{type(config).__name__}: Transformers has no model to build from it") from error
    return found  # type: ignore[return-value]
