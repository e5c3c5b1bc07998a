"""Reads the experts of a checkpoint straight into the records that store them (DESIGN 5, "The takeover").

Transformers determines which checkpoint tensors form which parameter, and converts them. In most checkpoints, the experts are
separate tensors that it stacks into one parameter per layer. Feeding it one expert at a time yields that expert's slice of the
result, so no layer ever has to be in memory as a whole.
"""

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers.core_model_loading import WeightConverter, WeightRenaming, WeightTransform, rename_source_key

from finemoe.errors import FinemoeError
from finemoe.models.layers import MoELayer
from finemoe.packing.codec import PackedTensor
from finemoe.runtime.conversion import ExpertConversion, OneExpert, converted
from finemoe.runtime.expert_layout import LINE_BYTES, phase_of
from finemoe.runtime.packed_parts import PackedPart, is_packed_type, packed_parts, plain_part, present
from finemoe.runtime.packing import Matrix
from finemoe.runtime.shards import Shards
from finemoe.runtime.soundness import packed_fault
from finemoe.runtime.tensor_group import Group
from finemoe.runtime.tiers import ExpertStore


class Checkpoint:
    """Maps the tensors of a checkpoint to the parameters of a model.

    Args:
        model: the model, built but without loaded weights.
        shards: the checkpoint's tensors.
        mapping: Transformers' renamings and converters.
    """

    def __init__(self, model: nn.Module, shards: Shards, mapping: Sequence[WeightTransform]) -> None:
        self._model, self._shards = model, shards
        self._groups: dict[str, Group] = {}
        self._makers: dict[str, Group] = {}
        self._phases: dict[str, dict[str, int]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._target_of: dict[str, str] = {}
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        prefix: Any = model.base_model_prefix
        self._targets = targets = model.state_dict()
        for name in shards:  # the same loop as in Transformers, which does not expose its result
            target, pattern = rename_source_key(name, renamings, converters, prefix, targets)
            if target not in targets and name in targets:
                target, pattern = rename_source_key(name, [], [], prefix, targets)
            if target in targets:
                if target not in self._groups:
                    transform = WeightRenaming(name, target) if pattern is None else deepcopy(converter_of[pattern])
                    self._groups[target] = Group(target, transform)
                self._groups[target].sources[name if pattern is None else pattern].append(name)
                self._target_of[name] = target

    @property
    def files(self) -> list[str]:
        """The checkpoint's files."""
        return self._shards.files

    def without(self, parameters: set[str]) -> dict[str, Any]:
        """All tensors, unread, in the form of Transformers' loading step; those that form one of `parameters` have no values."""
        return self._shards.lazily(lambda name: self._target_of.get(name) in parameters)

    def phases(self, layer: MoELayer) -> dict[str, int]:
        """Phases (see `expert_layout`) that from_pretrained gives a layer's parameters on the CPU; for a parameter that stays
        memory-mapped, the phase in its file."""
        return {name: self._phases_of(self._maker(full))[full] for name, full in _full_names(layer).items()}

    def matrices(self, layer: MoELayer) -> tuple[Matrix, ...] | None:
        """How the checkpoint packs a layer's experts; None if it does not pack them.

        Raises:
            FinemoeError: it packs them, but its tensors cannot be split by expert.
        """
        parts = self._parts(layer)
        return tuple(part.matrix for _, part in parts) if parts else None

    def load_experts(self, layers: Sequence[MoELayer], records: ExpertStore, progress: bool) -> None:
        """Load the experts of all layers into their records, one at a time where their tensors can be split by expert.

        Raises:
            FinemoeError: a file is missing or truncated.
        """
        groups = [self._groups_of(layer) for layer in layers]
        whole: dict[str, dict[str, torch.Tensor]] = {}  # results of groups that form parameters of several layers, by group
        for number, layer in enumerate(tqdm(layers, desc="loading experts", unit="layer", disable=not progress)):
            if records.layouts[layer.index].packing is not None and (parts := self._parts(layer)):
                for expert in range(layer.num_experts):
                    records.write_record(layer.index, expert, self._packed(parts, expert))
            elif all(group.is_by_expert(layer.num_experts) for group in groups[number].values()):
                for expert in range(layer.num_experts):
                    made = self._merged(self._of_expert(group, expert) for group in groups[number].values())
                    self._write(layer, expert, made, 0, records)
            else:
                whole |= {target: self._whole(group) for target, group in groups[number].items() if target not in whole}
                made = self._merged(whole[target] for target in groups[number])
                for expert in range(layer.num_experts):
                    self._write(layer, expert, made, expert, records)
                later = {target for one in groups[number + 1 :] for target in one}
                whole = {target: values for target, values in whole.items() if target in later}
            self._shards.close()

    def packed_fault(self) -> str | None:
        """A description of what is wrong with packed tensors; None if nothing is."""
        return packed_fault(self._groups.values(), self._shards, self._targets)

    def doubled(self) -> str | None:
        """A description of a parameter whose weights exist both whole and in parts; None if there is none."""
        for group in self._groups.values():
            other = [pattern for pattern in group.sources if pattern not in group.transform.source_patterns]
            if other and isinstance(group.transform, WeightConverter):
                part = next(names[0] for pattern, names in group.sources.items() if pattern not in other)
                return f"the checkpoint has both {other[0]} ({self._shards.file_of(other[0])}) and parts of it, as {part}"
        return None

    def fault(self, target: str) -> str | None:
        """A description of what is wrong with the tensors of a parameter; None if they show no fault."""
        group = self._groups.get(target)
        if group is None:
            return None
        parameter = self._model.get_parameter(target)
        if isinstance(group.transform, WeightRenaming):
            return self._odd_shape(group.transform.source_patterns[0], tuple(parameter.shape))
        absent = [pattern for pattern in group.transform.source_patterns if pattern not in group.sources]
        absent = [pattern for pattern in absent if not pattern.endswith("activation_scale")]
        if absent and self._method(group) != "compressed-tensors":  # which lists the tensors of all its formats
            return f"the checkpoint lacks all tensors *{absent[0]} that make {target}"
        for names in group.sources.values() if group.is_stacked else ():
            if found := self._lost_or_extra(names, len(parameter)):
                return found
        for names in group.sources.values():
            (usual, _), *others = Counter(self._shards.shape(name) for name in names).most_common()
            if others:
                return self._odd_shape(next(name for name in names if self._shards.shape(name) != usual), usual)
        return None

    def _lost_or_extra(self, names: list[str], num_experts: int) -> str | None:
        numbered = _by_number(names)
        lost = [number for number in range(num_experts) if number not in numbered] if numbered else []
        if lost:
            beside = self._shards.file_of(names[0])
            return f"the checkpoint lacks {_renumbered(names[0], names[-1], lost[0])} ({beside} holds {names[0]})"
        extra = [name for number, name in numbered.items() if number >= num_experts]
        if extra:
            return (
                f"the checkpoint has {extra[0]} ({self._shards.file_of(extra[0])}), "
                f"but its configuration has {num_experts} experts"
            )
        return None

    def _odd_shape(self, name: str, usual: tuple[int, ...]) -> str:
        return f"the checkpoint has shape {self._shards.shape(name)}, not {usual}, for {name} ({self._shards.file_of(name)})"

    def _write(self, layer: MoELayer, expert: int, made: dict[str, torch.Tensor], row: int, records: ExpertStore) -> None:
        weights = {name: made[full][row] for name, full in _full_names(layer).items()}
        for name, parameter in layer.expert_parameters().items():
            assert weights[name].shape == parameter.shape[1:], f"{layer.name}.{name} of expert {expert}"
        records.write(layer.index, expert, weights)

    def _parts(self, layer: MoELayer) -> list[tuple[Group, PackedPart]]:
        """The packed parts of a layer's experts; empty if nothing is packed."""
        groups = {name: self._maker(full) for name, full in _full_names(layer).items()}
        if not any(self._is_packed(group) for group in groups.values()):
            return []
        found = []
        for name, group in groups.items():
            if not group.is_by_expert(layer.num_experts):
                raise FinemoeError(
                    f"the packed tensors of {layer.name}.{name} cannot be split by expert, so no expert can be loaded alone; "
                    "use this model's checkpoint in bf16"
                )
            shape = tuple(layer.expert_parameters()[name].shape[1:])
            found += [(group, part) for part in self._parts_of(group, name, shape)]
        return found

    def _parts_of(self, group: Group, name: str, shape: tuple[int, ...]) -> list[PackedPart]:

        def spec(pattern: str) -> PackedTensor:
            meta = self._shards.on_meta(group.sources[pattern][0])
            return PackedTensor(pattern, tuple(meta.shape if group.is_stacked else meta.shape[1:]), meta.dtype)

        if isinstance(group.transform, WeightRenaming):
            return [plain_part(name, shape, spec(group.transform.source_patterns[0]))]
        conversion = ExpertConversion(group, present(group), self._model)
        return packed_parts(group, name, shape, spec, conversion, self._method(group))

    def _packed(self, parts: list[tuple[Group, PackedPart]], expert: int) -> dict[str, torch.Tensor]:
        """One expert's packed tensors, by name."""
        return {
            field: self._entry(group, pattern, expert)
            for group, part in parts
            for field, pattern in zip(part.matrix.tensors, part.patterns, strict=True)
        }

    def _entry(self, group: Group, pattern: str, expert: int) -> torch.Tensor:
        """One expert's share of a pattern's tensors, without an expert axis."""
        names = group.sources[pattern]
        return self._shards.read(names[expert]) if group.is_stacked else self._shards.read_row(names[0], expert)[0]

    def _is_packed(self, group: Group) -> bool:
        """Whether a group's tensors are packed rather than exempt from the checkpoint's quantisation."""
        names = (names[0] for names in group.sources.values())
        return group.dequantizes and any(is_packed_type(self._shards.on_meta(name).dtype) for name in names)

    @staticmethod
    def _method(group: Group) -> str:
        if not group.dequantizes:
            return "plain"
        method = group.operations[0].hf_quantizer.quantization_config.quant_method
        return str(getattr(method, "value", method))

    def _groups_of(self, layer: MoELayer) -> dict[str, Group]:
        makers = [self._maker(full) for full in _full_names(layer).values()]
        return {group.target: group for group in makers}

    def _maker(self, parameter: str) -> Group:
        """The group that forms a parameter; the last one if there are several, since Transformers sets them one after another."""
        if not self._makers:
            for group in self._groups.values():
                patterns = group.transform.target_patterns
                is_single = len(patterns) == 1 and "*" not in patterns[0]
                self._makers |= dict.fromkeys([group.target] if is_single else self._phases_of(group), group)
        return self._makers[parameter]

    def _phases_of(self, group: Group) -> dict[str, int]:
        """The parameters that a group forms, with phases; converted on the meta device, where views are views as elsewhere."""
        if group.dequantizes and len(group.transform.target_patterns) == 1:
            return {group.target: 0}  # unpacked weights are in new memory
        if group.target not in self._phases:
            metas = {name: self._shards.on_meta(name) for names in group.sources.values() for name in names}
            cast = {name: meta.to(self._dtype(group)) for name, meta in metas.items()}
            parts = {pattern: [cast[name] for name in names] for pattern, names in group.sources.items()}
            made = converted(group, parts, self._model)
            self._phases[group.target] = {name: self._phase(value, metas) for name, value in made.items()}
        return self._phases[group.target]

    def _phase(self, value: torch.Tensor, metas: dict[str, torch.Tensor]) -> int:
        """Where a value made of `metas` begins: within a file if it is a view of its tensor, else in new memory, at phase 0."""
        storage = value.untyped_storage()
        source = next((name for name, meta in metas.items() if meta.untyped_storage() is storage), None)
        begin = 0 if source is None else phase_of(self._shards.read(source))
        return int(begin + value.storage_offset() * value.element_size()) % LINE_BYTES

    def _whole(self, group: Group) -> dict[str, torch.Tensor]:
        """Everything that a group forms, by parameter name."""
        parts = {pattern: [self._source(group, name) for name in names] for pattern, names in group.sources.items()}
        return converted(group, parts, self._model)

    def _of_expert(self, group: Group, expert: int) -> dict[str, torch.Tensor]:
        """One expert's slice [1, ...] of everything that a group forms, by parameter name."""
        parts = {}
        for pattern, names in group.sources.items():
            tensor = self._shards.read(names[expert]) if group.is_stacked else self._shards.read_row(names[0], expert)
            parts[pattern] = [tensor.to(self._dtype(group))]
        return converted(group, parts, OneExpert(self._model))

    def _source(self, group: Group, name: str) -> torch.Tensor:
        """A tensor in the type to which Transformers converts it first."""
        return self._shards.read(name).to(self._dtype(group))

    def _dtype(self, group: Group) -> torch.dtype:
        if group.target not in self._dtypes:
            self._dtypes[group.target] = self._model.get_parameter(group.target).dtype
        return self._dtypes[group.target]

    @staticmethod
    def _merged(parts: Any) -> dict[str, torch.Tensor]:
        return {name: value for part in parts for name, value in part.items()}


def _full_names(layer: MoELayer) -> dict[str, str]:
    return {name: f"{layer.name}.{name}" for name in layer.expert_parameters()}


def _by_number(names: list[str]) -> dict[int, str]:
    """Names by the one number in which they differ; empty if they differ in another way."""
    place = _place(names[0], names[-1])
    found = [name.split(".")[place] for name in names] if place is not None else []
    return {int(text): name for text, name in zip(found, names, strict=True)} if all(map(str.isdigit, found)) and found else {}


def _place(one: str, other: str) -> int | None:
    pairs = list(zip(one.split("."), other.split("."), strict=False))
    differing = [place for place, (first, second) in enumerate(pairs) if first != second]
    return differing[0] if len(differing) == 1 else None


def _renumbered(name: str, other: str, number: int) -> str:
    place = _place(name, other)
    assert place is not None
    parts = name.split(".")
    return ".".join([*parts[:place], str(number), *parts[place + 1 :]])
