"""Reads a safetensors checkpoint into a model, each expert going straight to where it shall wait (DESIGN 5, "The takeover").

Transformers' own conversion mapping says which checkpoint tensors become which parameter. The experts of most checkpoints are
separate tensors that it stacks into one parameter per layer; feeding it one expert at a time gives that expert's slice of the
result, so that no layer need ever be in memory whole.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from finemoe.errors import FinemoeError
from finemoe.runtime.layers import MoELayer
from finemoe.runtime.records import phase_of
from finemoe.runtime.tiers import RecordStore

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


class Shards:
    """The tensors of a checkpoint folder by name; files are opened when needed and closed by `close`.

    Raises:
        FinemoeError: the folder holds no safetensors checkpoint, or a file is missing or truncated.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file_of = _read_index(folder)
        self._open: dict[str, Any] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._file_of, key=dot_natural_key))

    def read(self, name: str) -> torch.Tensor:
        """A whole tensor, mapped from the file."""
        tensor: torch.Tensor = self._handle(name).get_tensor(name)
        return tensor

    def read_row(self, name: str, index: int) -> torch.Tensor:
        """One entry of a tensor's first axis, [1, ...]."""
        tensor: torch.Tensor = self._handle(name).get_slice(name)[index : index + 1]
        return tensor

    def close(self) -> None:
        """Unmap every file."""
        self._open.clear()

    def _handle(self, name: str) -> Any:
        from safetensors import SafetensorError, safe_open

        file = self._file_of[name]
        if file not in self._open:
            try:
                self._open[file] = safe_open(self._folder / file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise FinemoeError(
                    f"{self._folder / file}: missing or truncated ({error}); fetch the checkpoint again"
                ) from error
        return self._open[file]


def _read_index(folder: Path) -> dict[str, str]:
    import json

    from safetensors import SafetensorError, safe_open

    if (folder / _INDEX).is_file():
        mapping: dict[str, str] = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
        return mapping
    if not (folder / _SINGLE).is_file():
        raise FinemoeError(f"{folder}: neither {_INDEX} nor {_SINGLE}; finemoe.load reads safetensors checkpoints")
    try:
        with safe_open(folder / _SINGLE, framework="pt") as file:
            return dict.fromkeys(file.keys(), _SINGLE)
    except (SafetensorError, OSError) as error:
        raise FinemoeError(f"{folder / _SINGLE}: truncated or no safetensors file ({error}); fetch it again") from error


class Checkpoint:
    """Which tensors of a checkpoint make which parameter of a model.

    Args:
        model: built, its weights not yet loaded; shards: the checkpoint's tensors.
    """

    def __init__(self, model: nn.Module, shards: Shards) -> None:
        self._model, self._shards = model, shards
        mapping = get_model_conversion_mapping(model)  # type: ignore[arg-type]
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self._converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        self._sources: dict[str, dict[str | None, list[str]]] = defaultdict(lambda: defaultdict(list))
        targets = model.state_dict()
        prefix = model.base_model_prefix
        for name in shards:
            target, pattern = rename_source_key(name, renamings, converters, prefix, targets)  # type: ignore[arg-type]
            if target not in targets and name in targets:
                target, pattern = name, None
            if target in targets:
                self._sources[target][pattern].append(name)

    def targets(self) -> set[str]:
        """First target of every group of tensors; a converter may make several parameters of one group."""
        return set(self._sources)

    def whole(self, target: str) -> dict[str, torch.Tensor]:
        """Parameter values by name, converted from all tensors behind `target`."""
        return self._convert(target, {pattern: [self._shards.read(n) for n in names] for pattern, names in self._of(target)})

    def expert(self, target: str, expert: int, num_experts: int) -> torch.Tensor | None:
        """One expert's slice [1, ...] of the parameter `target`, or None where it cannot be made without the others."""
        if target not in self._sources:
            return None
        parts: dict[str | None, list[torch.Tensor]] = {}
        for pattern, names in self._of(target):
            if len(names) == num_experts:
                parts[pattern] = [self._shards.read(names[expert])]
            elif len(names) == 1:
                parts[pattern] = [self._shards.read_row(names[0], expert)]
            else:
                return None
        converted = self._convert(target, parts)
        return converted.get(target) if len(converted) == 1 else None

    def phase(self, target: str, parameter: nn.Parameter) -> int:
        """Phase (see `records`) that from_pretrained gives an experts parameter: its file's where it can leave it mapped."""
        if target not in self._sources:
            return 0
        weight = self.expert(target, 0, len(parameter))
        if weight is None or weight.shape[1:] != parameter.shape[1:]:
            weight = self.whole(target).get(target)
        if weight is None or weight.dtype != parameter.dtype or not weight.is_contiguous():
            return 0
        return phase_of(weight)

    def _of(self, target: str) -> list[tuple[str | None, list[str]]]:
        return list(self._sources[target].items())

    def _convert(self, target: str, parts: dict[str | None, list[torch.Tensor]]) -> dict[str, torch.Tensor]:
        if None in parts:
            return {target: parts[None][-1]}
        converter = deepcopy(self._converter_of[next(iter(parts))])  # type: ignore[index]
        for pattern, tensors in parts.items():
            for tensor, name in zip(tensors, self._sources[target][pattern], strict=False):
                converter.add_tensor(target, name, pattern, tensor)  # type: ignore[arg-type]
        converted = converter.convert(target, model=self._model, config=self._model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in converted.items()}


def load_experts(checkpoint: Checkpoint, shards: Shards, layer: MoELayer, records: RecordStore) -> bool:
    """Put a layer's experts into their records, one by one; False where their tensors do not come apart by expert."""
    parameters = layer.expert_parameters()
    for expert in range(layer.num_experts):
        weights = {}
        for name, parameter in parameters.items():
            part = checkpoint.expert(f"{layer.name}.{name}", expert, layer.num_experts)
            if part is None or part.shape != (1, *parameter.shape[1:]):
                return False
            weights[name] = part[0]
        records.write(layer.index, expert, weights)
    shards.close()
    return True


def load_together(values: dict[str, torch.Tensor], layers: Sequence[MoELayer], records: RecordStore) -> None:
    """Put whole fused parameters, by their full names, into the records of their layers."""
    for layer in layers:
        names = {name: f"{layer.name}.{name}" for name in layer.expert_parameters()}
        for name, parameter in layer.expert_parameters().items():
            found = values.get(names[name])
            if found is None or found.shape != parameter.shape:
                what = "lacks" if found is None else f"has shape {tuple(found.shape)}, not {tuple(parameter.shape)}, for"
                raise FinemoeError(f"the checkpoint {what} {names[name]}; fetch it again, or check that it is this model's")
        for expert in range(layer.num_experts):
            records.write(layer.index, expert, {name: values[full][expert] for name, full in names.items()})
