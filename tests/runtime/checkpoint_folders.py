"""Checkpoint folders as they come: whole, damaged, stale, misnamed; and what `finemoe.load` and `from_pretrained` make of each.

    python -m tests.runtime.checkpoint_folders [kind ...]

makes every kind of folder for every family, loads it in every type, and prints how many were equal and how many refused.
"""

import json
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint import CheckpointException
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

import finemoe
from finemoe.errors import FinemoeError
from finemoe.models.layers import find_moe_layers
from finemoe.runtime.expert_layout import ExpertLayout
from finemoe.runtime.pretrained import whole_model
from tests.runtime import families
from tests.runtime.models import _COMMON, build

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = ("auto", "bfloat16", "float16")
GENERATION = {
    "max_new_tokens": 3,
    "min_new_tokens": 3,
    "do_sample": False,
    "return_dict_in_generate": True,
    "output_logits": True,
}
# What from_pretrained may load and finemoe.load says it does not; `whole_model` refuses adapters only.
UNSUPPORTED = (
    "adapter_beside",
    "adapter_config_alone",
    "bin",
    "bin_shards",
    "index_that_names_a_file_of_pickles",
    "shards_of_a_distributed_run",
)


@dataclass
class Folder:
    """A checkpoint's folder, and what is done to it."""

    path: Path
    family: str

    def read(self, name: str = ONE) -> dict[str, torch.Tensor]:
        """Copies of a file's tensors."""
        return {key: value.clone() for key, value in load_file(self.path / name).items()}

    def write(self, tensors: dict[str, torch.Tensor], name: str = ONE) -> None:
        (self.path / name).unlink(missing_ok=True)
        save_file({key: value.contiguous() for key, value in tensors.items()}, self.path / name, metadata={"format": "pt"})

    def edit(self, function: Callable[[dict[str, torch.Tensor]], None]) -> None:
        """Change the tensors of the one file."""
        tensors = self.read()
        function(tensors)
        self.write(tensors)

    def json(self, name: str = "config.json") -> dict[str, Any]:
        return json.loads((self.path / name).read_text())

    def write_json(self, content: Any, name: str = "config.json") -> None:
        (self.path / name).write_text(json.dumps(content))

    def shards(self) -> list[str]:
        return sorted(path.name for path in self.path.glob("model-*.safetensors"))

    def into_shards(self, seed: int = 0) -> None:
        """Replace the one file by shards and their index."""
        with suppress(FileNotFoundError):
            (self.path / ONE).unlink()
        shutil.copytree(saved(self.family, seed, "40KB"), self.path, dirs_exist_ok=True)

    def other(self) -> Path:
        """The same model with other weights, as one file."""
        return saved(self.family, 1) / ONE


Kind = Callable[[Folder], None]
KINDS: dict[str, Kind] = {}


def kind(function: Kind) -> Kind:
    KINDS[function.__name__] = function
    return function


class NotHere(Exception):
    """A family whose checkpoints cannot be of a kind."""


def routed(tensors: Any, layer: int | None = None) -> list[str]:
    """Names of routed experts' tensors (of one of the layers that have some)."""
    names = sorted(
        name
        for name in tensors
        if re.search(r"experts?\.|moe\.(input|output)_linear\.", name) and "shared" not in name and "gate.e_" not in name
    )
    names = [name for name in names if re.search(r"\.layers\.\d+\.", name)]
    if layer is None:
        return names
    numbers = sorted({_layer(name) for name in names})
    return [name for name in names if _layer(name) == numbers[layer]]


def _layer(name: str) -> int:
    return int(re.search(r"\.layers\.(\d+)\.", name)[1])


def apart(tensors: Any, layer: int = 0) -> list[str]:
    """Names of the tensors of a layer's experts, where every expert has its own."""
    names = [name for name in routed(tensors, layer) if re.search(r"\.experts\.\d+\.", name)]
    if not names:
        raise NotHere("its experts are fused")
    return names


def _number(name: str) -> int:
    return int(re.search(r"\.experts\.(\d+)\.", name)[1])


def _as(name: str, number: int) -> str:
    return re.sub(r"\.experts\.\d+\.", f".experts.{number}.", name)


# Files and indices


@kind
def one_file(folder: Folder) -> None:
    """As save_pretrained leaves it."""


@kind
def shards(folder: Folder) -> None:
    folder.into_shards()


@kind
def saved_again(folder: Folder) -> None:
    model = _auto(folder.family).from_pretrained(folder.path)
    shutil.rmtree(folder.path)
    model.save_pretrained(folder.path)


@kind
def one_file_beside_stale_shards(folder: Folder) -> None:
    folder.into_shards()
    shutil.copy(folder.other(), folder.path / ONE)


@kind
def one_file_under_stale_index(folder: Folder) -> None:
    shutil.copy(saved(folder.family, 0, "40KB") / INDEX, folder.path)


@kind
def one_file_beside_damaged_index(folder: Folder) -> None:
    (folder.path / INDEX).write_text("{")


@kind
def damaged_index(folder: Folder) -> None:
    folder.into_shards()
    text = (folder.path / INDEX).read_text()
    (folder.path / INDEX).write_text(text[: len(text) // 2])


@kind
def empty_index(folder: Folder) -> None:
    folder.into_shards()
    (folder.path / INDEX).write_text("")


@kind
def index_that_names_a_file_of_pickles(folder: Folder) -> None:
    """One of its shards was never converted."""
    folder.into_shards()
    shard = folder.shards()[0]
    torch.save(folder.read(shard), folder.path / "pytorch_model-00001.bin")
    (folder.path / shard).unlink()

    def rename(index: Any) -> None:
        names = index["weight_map"]
        index["weight_map"] = {key: "pytorch_model-00001.bin" if name == shard else name for key, name in names.items()}

    _edit_index(folder, rename)


@kind
def index_without_metadata(folder: Folder) -> None:
    _edit_index(folder, lambda index: index.pop("metadata"))


@kind
def index_without_weight_map(folder: Folder) -> None:
    _edit_index(folder, lambda index: index.pop("weight_map"))


@kind
def index_that_is_a_list(folder: Folder) -> None:
    folder.into_shards()
    folder.write_json([], INDEX)


@kind
def index_that_names_wrong_shards(folder: Folder) -> None:
    def rotate(index: Any) -> None:
        names, files = list(index["weight_map"]), list(index["weight_map"].values())
        index["weight_map"] = dict(zip(names, files[7:] + files[:7], strict=True))

    _edit_index(folder, rotate)


@kind
def index_that_names_a_lost_shard(folder: Folder) -> None:
    folder.into_shards()
    (folder.path / folder.shards()[1]).unlink()


@kind
def index_that_forgets_a_tensor(folder: Folder) -> None:
    _edit_index(folder, lambda index: index["weight_map"].pop(routed(index["weight_map"])[0]))


@kind
def index_that_forgets_a_shard(folder: Folder) -> None:
    def forget(index: Any) -> None:
        gone = folder.shards()[2]
        index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file != gone}

    _edit_index(folder, forget)


@kind
def index_that_names_a_tensor_nobody_holds(folder: Folder) -> None:
    _edit_index(folder, lambda index: index["weight_map"].update({"model.nothing.weight": folder.shards()[0]}))


@kind
def index_with_a_type_of_its_own(folder: Folder) -> None:
    _edit_index(folder, lambda index: index["metadata"].update(dtype="bfloat16"))
    _drop_dtype(folder)


@kind
def index_of_other_names(folder: Folder) -> None:
    folder.into_shards()
    names = {file: f"part{number}.safetensors" for number, file in enumerate(reversed(folder.shards()))}
    for old, new in names.items():
        (folder.path / old).rename(folder.path / new)
    index = folder.json(INDEX)
    index["weight_map"] = {name: names[file] for name, file in index["weight_map"].items()}
    folder.write_json(index, INDEX)


@kind
def index_into_a_subfolder(folder: Folder) -> None:
    folder.into_shards()
    (folder.path / "parts").mkdir()
    for file in folder.shards():
        (folder.path / file).rename(folder.path / "parts" / file)
    index = folder.json(INDEX)
    index["weight_map"] = {name: f"parts/{file}" for name, file in index["weight_map"].items()}
    folder.write_json(index, INDEX)


@kind
def tensor_in_two_shards(folder: Folder) -> None:
    folder.into_shards()
    tensors = folder.read(folder.shards()[-1])
    others = [folder.read(file) for file in folder.shards()[:-1]]
    doubled = next(routed(held)[0] for held in others if routed(held))
    held = next(held[doubled] for held in others if doubled in held)
    folder.write(tensors | {doubled: held + 0.25}, folder.shards()[-1])


@kind
def truncated_file(folder: Folder) -> None:
    data = (folder.path / ONE).read_bytes()
    (folder.path / ONE).write_bytes(data[: len(data) * 2 // 3])


@kind
def truncated_header(folder: Folder) -> None:
    (folder.path / ONE).write_bytes((folder.path / ONE).read_bytes()[:100])


@kind
def truncated_shard(folder: Folder) -> None:
    folder.into_shards()
    file = folder.path / folder.shards()[3]
    file.write_bytes(file.read_bytes()[:-50])


@kind
def empty_file(folder: Folder) -> None:
    (folder.path / ONE).write_bytes(b"")


@kind
def pointer_of_git_lfs(folder: Folder) -> None:
    (folder.path / ONE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


@kind
def no_weights(folder: Folder) -> None:
    (folder.path / ONE).unlink()


@kind
def link_to_no_file(folder: Folder) -> None:
    (folder.path / ONE).unlink()
    (folder.path / ONE).symlink_to(folder.path / "blob")


@kind
def folder_in_place_of_the_file(folder: Folder) -> None:
    (folder.path / ONE).unlink()
    (folder.path / ONE).mkdir()


@kind
def symbolic_links(folder: Folder) -> None:
    blobs = folder.path.with_name(f"{folder.path.name}-blobs")
    folder.path.rename(blobs)
    folder.path.mkdir()
    for number, file in enumerate(sorted(blobs.iterdir())):
        blob = file.rename(blobs / f"blob{number}")
        (folder.path / file.name).symlink_to(blob)


@kind
def file_named_in_the_configuration(folder: Folder) -> None:
    shutil.copy(folder.other(), folder.path / "other.safetensors")
    folder.write_json(folder.json() | {"transformers_weights": "other.safetensors"})


@kind
def shards_of_a_distributed_run(folder: Folder) -> None:
    (folder.path / ONE).rename(folder.path / "shard-00000-model-00001-of-00001.safetensors")


# Variants, formats, adapters, subfolders


@kind
def variant_alone(folder: Folder) -> None:
    (folder.path / ONE).rename(folder.path / "model.fp16.safetensors")


@kind
def variant_beside(folder: Folder) -> None:
    shutil.copy(folder.other(), folder.path / "model.fp16.safetensors")


@kind
def variant_shards_alone(folder: Folder) -> None:
    folder.into_shards()
    (folder.path / INDEX).rename(folder.path / "model.safetensors.index.fp16.json")


@kind
def bin(folder: Folder) -> None:
    torch.save(folder.read(), folder.path / "pytorch_model.bin")
    (folder.path / ONE).unlink()


@kind
def bin_beside(folder: Folder) -> None:
    torch.save(load_file(folder.other()), folder.path / "pytorch_model.bin")


@kind
def bin_shards(folder: Folder) -> None:
    tensors = folder.read()
    (folder.path / ONE).unlink()
    names = sorted(tensors)
    parts = {"a.bin": names[::2], "b.bin": names[1::2]}
    for file, part in parts.items():
        torch.save({name: tensors[name] for name in part}, folder.path / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    folder.write_json(index, "pytorch_model.bin.index.json")


@kind
def damaged_bin(folder: Folder) -> None:
    (folder.path / ONE).rename(folder.path / "pytorch_model.bin")


@kind
def original_beside(folder: Folder) -> None:
    (folder.path / "original").mkdir()
    shutil.copy(folder.other(), folder.path / "original" / ONE)
    torch.save({}, folder.path / "original" / "consolidated.00.pth")


@kind
def original_alone(folder: Folder) -> None:
    (folder.path / "original").mkdir()
    (folder.path / ONE).rename(folder.path / "original" / ONE)


@kind
def consolidated_beside(folder: Folder) -> None:
    shutil.copy(folder.other(), folder.path / "consolidated.safetensors")


@kind
def adapter_beside(folder: Folder) -> None:
    adapter_config_alone(folder)
    save_file({"base_model.model.lm_head.lora_A.weight": torch.ones(4, 32)}, folder.path / "adapter_model.safetensors")


@kind
def adapter_config_alone(folder: Folder) -> None:
    content = {"peft_type": "LORA", "base_model_name_or_path": str(folder.path), "r": 4, "target_modules": ["q_proj"]}
    folder.write_json(content, "adapter_config.json")


@kind
def adapter_without_a_model(folder: Folder) -> None:
    for file in folder.path.iterdir():
        file.unlink()
    adapter_beside(folder)


@kind
def adapter_weights_alone(folder: Folder) -> None:
    save_file({"base_model.model.lm_head.lora_A.weight": torch.ones(4, 32)}, folder.path / "adapter_model.safetensors")


# Tensors


@kind
def lost_matrix_of_an_expert(folder: Folder) -> None:
    folder.edit(lambda tensors: tensors.pop(apart(tensors, 1)[-2]))


@kind
def lost_matrix_of_the_first_expert(folder: Folder) -> None:
    folder.edit(lambda tensors: tensors.pop(apart(tensors, 0)[0]))


@kind
def lost_expert(folder: Folder) -> None:
    _pop(folder, lambda tensors: [name for name in apart(tensors, 1) if _number(name) == 3])


@kind
def lost_last_expert(folder: Folder) -> None:
    _pop(folder, lambda tensors: [n for n in apart(tensors, 1) if _number(n) == max(map(_number, apart(tensors, 1)))])


@kind
def lost_matrix_of_all_experts(folder: Folder) -> None:
    _pop(folder, lambda tensors: [name for name in routed(tensors, 1) if _ending(name) == _ending(routed(tensors, 1)[-1])])


@kind
def lost_gate_of_all_experts(folder: Folder) -> None:
    _pop(folder, lambda tensors: [name for name in routed(tensors, 1) if _ending(name) == _ending(routed(tensors, 1)[0])])


@kind
def lost_layer_of_experts(folder: Folder) -> None:
    _pop(folder, lambda tensors: routed(tensors, 1))


@kind
def lost_all_experts(folder: Folder) -> None:
    _pop(folder, routed)


@kind
def lost_router(folder: Folder) -> None:
    _pop(
        folder, lambda tensors: [name for name in tensors if re.search(r"(gate|router)\.weight$|router.*layer.weight$", name)][:1]
    )


@kind
def lost_correction_bias(folder: Folder) -> None:
    _pop(folder, lambda tensors: [name for name in tensors if name.endswith("e_score_correction_bias")][:1])


@kind
def lost_norm(folder: Folder) -> None:
    _pop(folder, lambda tensors: [name for name in tensors if "norm" in name][:1])


@kind
def lost_embedding(folder: Folder) -> None:
    _pop(folder, lambda tensors: [name for name in tensors if "embed_tokens" in name])


@kind
def lost_head(folder: Folder) -> None:
    _pop(folder, lambda tensors: [name for name in tensors if "lm_head" in name])


@kind
def renumbered_expert(folder: Folder) -> None:
    def renumber(tensors: Any) -> None:
        for name in [name for name in apart(tensors, 1) if _number(name) == 3]:
            tensors[_as(name, 11)] = tensors.pop(name)

    folder.edit(renumber)


@kind
def extra_expert(folder: Folder) -> None:
    def add(tensors: Any) -> None:
        count = 1 + max(map(_number, apart(tensors, 0)))
        tensors |= {_as(name, count): tensors[name] + 1 for name in apart(tensors, 0) if _number(name) == 0}

    folder.edit(add)


@kind
def extra_matrix_of_an_expert(folder: Folder) -> None:
    folder.edit(lambda tensors: tensors.update({_as(apart(tensors, 0)[0], 12): tensors[apart(tensors, 0)[0]] + 1}))


@kind
def extra_row_of_fused_experts(folder: Folder) -> None:
    def add(tensors: Any) -> None:
        name = _fused(tensors)[0]
        tensors[name] = torch.cat([tensors[name], tensors[name][:1]])

    folder.edit(add)


@kind
def lost_row_of_fused_experts(folder: Folder) -> None:
    folder.edit(lambda tensors: tensors.update({_fused(tensors)[0]: tensors[_fused(tensors)[0]][:-1]}))


@kind
def narrower_matrix_of_an_expert(folder: Folder) -> None:
    folder.edit(lambda tensors: tensors.update({apart(tensors, 1)[-1]: tensors[apart(tensors, 1)[-1]][..., :-1]}))


@kind
def narrower_experts(folder: Folder) -> None:
    folder.edit(lambda tensors: tensors.update({name: tensors[name][..., :-2] for name in routed(tensors, 1)}))


@kind
def transposed_expert(folder: Folder) -> None:
    folder.edit(lambda tensors: tensors.update({apart(tensors, 1)[-1]: tensors[apart(tensors, 1)[-1]].t()}))


@kind
def narrower_norm(folder: Folder) -> None:
    def cut(tensors: Any) -> None:
        name = next(name for name in tensors if "norm" in name)
        tensors[name] = tensors[name][:-1]

    folder.edit(cut)


@kind
def unknown_tensor(folder: Folder) -> None:
    folder.edit(lambda tensors: tensors.update({"model.aaa.weight": torch.ones(3), "zzz": torch.ones(2, dtype=torch.float64)}))


@kind
def layer_for_several_tokens(folder: Folder) -> None:
    def add(tensors: Any) -> None:
        last = max(_layer(name) for name in routed(tensors))
        own = [name for name in tensors if f".layers.{last}." in name]
        tensors |= {name.replace(f".layers.{last}.", f".layers.{last + 1}."): tensors[name] + 1 for name in own}
        tensors[f"model.layers.{last + 1}.eh_proj.weight"] = torch.ones(32, 64)

    folder.edit(add)


@kind
def old_rotary_buffer(folder: Folder) -> None:
    folder.edit(lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))


@kind
def names_of_the_model_itself(folder: Folder) -> None:
    """Every tensor under the name that the model gives its parameter: experts fused."""
    tied = family_model(folder.family).all_tied_weights_keys
    folder.write({name: value.clone() for name, value in family_model(folder.family).state_dict().items() if name not in tied})


@kind
def fused_and_apart_by_layers(folder: Folder) -> None:
    def fuse(tensors: Any) -> None:
        gone = apart(tensors, 1)
        own = family_model(folder.family).state_dict()
        for name in gone:
            del tensors[name]
        tensors |= {name: own[name].clone() for name in routed(own, 1)}

    folder.edit(fuse)


@kind
def fused_beside_apart(folder: Folder) -> None:
    """Both ways for one layer, and not the same weights."""

    def fuse(tensors: Any) -> None:
        assert apart(tensors, 1)
        own = family_model(folder.family).state_dict()
        tensors |= {name: own[name] + 0.5 for name in routed(own, 1)}

    folder.edit(fuse)


@kind
def names_without_the_prefix(folder: Folder) -> None:
    folder.write({name.removeprefix("model."): value for name, value in folder.read().items()})


@kind
def names_under_a_foreign_prefix(folder: Folder) -> None:
    folder.write({f"module.{name}": value for name, value in folder.read().items()})


@kind
def saved_from_the_inner_model(folder: Folder) -> None:
    model = family_model(folder.family)
    shutil.rmtree(folder.path)
    model.base_model.save_pretrained(folder.path)


@kind
def head_of_other_weights_though_tied(folder: Folder) -> None:
    folder.write_json(folder.json() | {"tie_word_embeddings": True})
    folder.edit(lambda tensors: tensors.update({"lm_head.weight": _embedding(tensors) + 0.1}))


@kind
def head_of_equal_weights_and_tied(folder: Folder) -> None:
    folder.write_json(folder.json() | {"tie_word_embeddings": True})
    folder.edit(lambda tensors: tensors.update({"lm_head.weight": _embedding(tensors).clone()}))


@kind
def head_alone_and_tied(folder: Folder) -> None:
    folder.write_json(folder.json() | {"tie_word_embeddings": True})

    def swap(tensors: Any) -> None:
        name = next(name for name in tensors if "embed_tokens.weight" in name)
        tensors["lm_head.weight"] = tensors.pop(name)

    folder.edit(swap)


# Types


def _cast(folder: Folder, choose: Callable[[str], torch.dtype]) -> None:
    folder.write({name: value.to(choose(name)) if value.is_floating_point() else value for name, value in folder.read().items()})


@kind
def in_bf16(folder: Folder) -> None:
    _cast(folder, lambda name: torch.bfloat16)
    folder.write_json(folder.json() | {"dtype": "bfloat16"})


@kind
def in_bf16_untold(folder: Folder) -> None:
    _cast(folder, lambda name: torch.bfloat16)
    _drop_dtype(folder)


@kind
def in_fp16_untold(folder: Folder) -> None:
    _cast(folder, lambda name: torch.float16)
    _drop_dtype(folder)


@kind
def in_fp32_untold(folder: Folder) -> None:
    _drop_dtype(folder)


@kind
def in_fp64_untold(folder: Folder) -> None:
    _cast(folder, lambda name: torch.float64)
    _drop_dtype(folder)


@kind
def in_bf16_told_fp32(folder: Folder) -> None:
    _cast(folder, lambda name: torch.bfloat16)


@kind
def in_fp32_told_bf16(folder: Folder) -> None:
    folder.write_json(folder.json() | {"dtype": "bfloat16"})


@kind
def told_by_the_old_name(folder: Folder) -> None:
    _drop_dtype(folder)
    folder.write_json(folder.json() | {"torch_dtype": "bfloat16"})


@kind
def mixed_untold(folder: Folder) -> None:
    """The first tensor in fp32, experts in bf16, the rest in fp16."""
    first = sorted(folder.read())[0]
    types = {True: torch.bfloat16, False: torch.float16}
    _cast(folder, lambda name: torch.float32 if name == first else types["expert" in name])
    _drop_dtype(folder)


@kind
def mixed_experts(folder: Folder) -> None:
    _cast(folder, lambda name: torch.bfloat16 if name in ending else torch.float32) if (
        ending := routed(folder.read())[::3]
    ) else None


@kind
def mixed_shards_untold(folder: Folder) -> None:
    folder.into_shards()
    for number, file in enumerate(folder.shards()):
        dtype = (torch.float16, torch.bfloat16)[number % 2]
        folder.write({name: value.to(dtype) for name, value in folder.read(file).items()}, file)
    _drop_dtype(folder)


@kind
def told_an_unknown_type(folder: Folder) -> None:
    folder.write_json(folder.json() | {"dtype": "float7"})


# Configurations


@kind
def no_architectures(folder: Folder) -> None:
    config = folder.json()
    config.pop("architectures")
    folder.write_json(config)


@kind
def unknown_architecture(folder: Folder) -> None:
    folder.write_json(folder.json() | {"architectures": ["SomebodysForCausalLM"]})


@kind
def ties_in_words(folder: Folder) -> None:
    folder.write_json(folder.json() | {"tie_word_embeddings": "false"})


@kind
def architectures_that_are_no_names(folder: Folder) -> None:
    folder.write_json(folder.json() | {"architectures": [None, 3]})


@kind
def architecture_of_another_family(folder: Folder) -> None:
    name = "MixtralForCausalLM" if "mixtral" not in folder.family else "Qwen2MoeForCausalLM"
    folder.write_json(folder.json() | {"architectures": [name]})


@kind
def architecture_without_a_head(folder: Folder) -> None:
    folder.write_json(folder.json() | {"architectures": [type(family_model(folder.family).base_model).__name__]})


@kind
def no_configuration(folder: Folder) -> None:
    (folder.path / "config.json").unlink()


@kind
def damaged_configuration(folder: Folder) -> None:
    (folder.path / "config.json").write_text("{")


@kind
def unknown_model_type(folder: Folder) -> None:
    folder.write_json(folder.json() | {"model_type": "moe9000"})


@kind
def code_of_its_own(folder: Folder) -> None:
    folder.write_json(folder.json() | {"model_type": "moe9000", "auto_map": {"AutoConfig": "a.B", "AutoModelForCausalLM": "a.C"}})


@kind
def code_of_its_own_for_a_known_family(folder: Folder) -> None:
    folder.write_json(folder.json() | {"auto_map": {"AutoModelForCausalLM": "modeling_c.C"}})


@kind
def fewer_layers_than_saved(folder: Folder) -> None:
    _change_size(folder, "num_hidden_layers", -1)


@kind
def more_layers_than_saved(folder: Folder) -> None:
    _change_size(folder, "num_hidden_layers", 1)


@kind
def larger_vocabulary_than_saved(folder: Folder) -> None:
    _change_size(folder, "vocab_size", 8)


@kind
def fewer_experts_than_saved(folder: Folder) -> None:
    _change_size(folder, _experts_key(folder), -4)


@kind
def more_experts_than_saved(folder: Folder) -> None:
    _change_size(folder, _experts_key(folder), 4)


@kind
def quantisation_of_none(folder: Folder) -> None:
    folder.write_json(folder.json() | {"quantization_config": None})


@kind
def quantised_by_bitsandbytes(folder: Folder) -> None:
    content = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    folder.write_json(folder.json() | {"quantization_config": content})


@kind
def generation_configuration(folder: Folder) -> None:
    folder.write_json({"top_k": 7, "max_new_tokens": 5, "pad_token_id": 0}, "generation_config.json")


@kind
def no_generation_configuration(folder: Folder) -> None:
    (folder.path / "generation_config.json").unlink(missing_ok=True)


@kind
def damaged_generation_configuration(folder: Folder) -> None:
    (folder.path / "generation_config.json").write_text("{")


def _edit_index(folder: Folder, function: Callable[[Any], Any]) -> None:
    folder.into_shards()
    index = folder.json(INDEX)
    function(index)
    folder.write_json(index, INDEX)


def _drop_dtype(folder: Folder) -> None:
    def drop(fields: Any) -> Any:
        return {key: drop(value) if isinstance(value, dict) else value for key, value in fields.items() if key != "dtype"}

    folder.write_json(drop(folder.json()))


def _pop(folder: Folder, choose: Callable[[Any], list[str]]) -> None:
    tensors = folder.read()
    names = choose(tensors)
    if not names:
        raise NotHere("it has no such tensor")
    folder.write({name: value for name, value in tensors.items() if name not in names})


def _ending(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def _fused(tensors: Any) -> list[str]:
    names = [name for name in routed(tensors) if not re.search(r"\.experts\.\d+\.", name)]
    if not names:
        raise NotHere("its experts are apart")
    return names


def _embedding(tensors: Any) -> torch.Tensor:
    return next(value for name, value in tensors.items() if "embed_tokens.weight" in name)


def _experts_key(folder: Folder) -> str:
    keys = ("num_local_experts", "num_experts", "n_routed_experts")
    found = [key for key in keys if key in _text(folder.json())]
    if not found:
        raise NotHere("its configuration says otherwise how many experts it has")
    return found[0]


def _text(fields: dict[str, Any]) -> dict[str, Any]:
    return fields.get("text_config", fields)


def _change_size(folder: Folder, key: str, by: int) -> None:
    fields = folder.json()
    text = _text(fields)
    text[key] += by
    for name, value in list(text.items()):
        if key == "num_hidden_layers" and isinstance(value, list) and len(value) == text[key] - by:
            text[name] = (value + value[-1:])[: text[key]]
    folder.write_json(fields)


# Families, and what is compared


FAMILIES = (
    "mixtral", "mixtral_tied", "mixtral_of_one_expert", "qwen2_moe", "qwen3_moe", "phimoe", "deepseek_v3", "glm4_moe",
    "gpt_oss", "granitemoe", "qwen3_vl_moe", "qwen3_vl_moe_square", "ernie4_5_vl_moe",
)  # fmt: skip


@cache
def family_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A tiny random model."""
    if family in ("mixtral", "qwen2_moe", "phimoe", "gpt_oss"):
        return build(family, seed=seed)
    if family in ("mixtral_tied", "mixtral_of_one_expert"):
        torch.manual_seed(seed)
        sizes = {"num_local_experts": 1, "num_experts_per_tok": 1} if family.endswith("expert") else {"num_local_experts": 8}
        ties = {"tie_word_embeddings": family == "mixtral_tied"}
        return MixtralForCausalLM(MixtralConfig(**_COMMON, **sizes, **ties, intermediate_size=48)).eval()
    if family == "qwen3_vl_moe_square":
        config = families.build("qwen3_vl_moe").config
        config.text_config.moe_intermediate_size = config.text_config.hidden_size // 2
        torch.manual_seed(seed)
        model = _class("qwen3_vl_moe")._from_config(config).eval()
        families._randomise(model, torch.float32, seed)
        return model
    return families.build(family, seed=seed)


@cache
def saved(family: str, seed: int = 0, shard_size: str = "1GB") -> Path:
    """A folder with a family's checkpoint, made once."""
    path = Path(tempfile.mkdtemp(prefix="finemoe-folders-"))
    family_model(family, seed).save_pretrained(path, max_shard_size=shard_size)
    return path


@cache
def _class(family: str) -> type[PreTrainedModel]:
    return families._classes(family.removesuffix("_square"))[0] if not family.startswith("mixtral_") else MixtralForCausalLM


def _auto(family: str) -> Any:
    """The Auto class to ask; a model's own class takes a folder without config.json for one of full size."""
    is_causal = type(family_model(family).config) in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForCausalLM if is_causal else AutoModelForImageTextToText


@dataclass
class Outcome:
    """What became of a folder: "equal" or "refused"; and the message."""

    verdict: str
    message: str = ""


def make(kind_name: str, family: str, path: Path) -> Path:
    """A folder of a kind.

    Raises:
        NotHere: the family has none such.
    """
    shutil.copytree(saved(family), path)
    KINDS[kind_name](Folder(path, family))
    return path


def outcome(kind_name: str, family: str, path: Path, dtype: str) -> Outcome:
    """Loads a folder and compares with `from_pretrained`.

    Raises:
        AssertionError: it is neither equal nor refused where it should be, or the refusal is not one line that names the folder.
    """
    reference, why = _reference(family, path, dtype)
    is_supported = kind_name not in UNSUPPORTED
    try:
        model, engine = finemoe.load(path, 0.5, "on-demand", dtype=dtype)
    except FinemoeError as error:
        message = str(error)
        assert reference is None or not is_supported, f"refused what from_pretrained loads: {message}"
        assert "\n" not in message, message
        assert str(path) in message, message
        _compare_whole(path, dtype, None if "adapter_config" in message else reference)
        return Outcome("refused", message)
    with engine:
        assert reference is not None, f"loaded what from_pretrained does not ({why})"
        assert is_supported
        _compare(model, engine, reference)
    _compare_whole(path, dtype, reference)
    return Outcome("equal")


def _reference(family: str, path: Path, dtype: str) -> tuple[PreTrainedModel | None, str]:
    """What `from_pretrained` gives, or None and why not."""
    auto = _auto(family)
    try:
        model, info = auto.from_pretrained(
            path, dtype=dtype, experts_implementation="eager", output_loading_info=True, trust_remote_code=False
        )
    except (Exception, CheckpointException) as error:
        return None, f"{type(error).__name__}: {error}"
    lost = [key for key in ("missing_keys", "mismatched_keys", "error_msgs") if info[key]]
    return (None, f"{lost}: {info[lost[0]]}") if lost else (model, "")


def _compare_whole(path: Path, dtype: str, reference: PreTrainedModel | None) -> None:
    """`record`'s models are loaded whole: they hold the same weights, or are refused where the reference is none."""
    message = ""
    try:
        model = whole_model(str(path), dtype)
    except FinemoeError as error:
        message = str(error)
    if message:
        assert reference is None, f"whole: refused what from_pretrained loads: {message}"
        assert "\n" not in message
        return
    assert reference is not None, "whole: loaded what from_pretrained does not"
    assert type(model) is type(reference)
    _assert_same(dict(_tensors(model)), dict(_tensors(reference)))


@torch.no_grad()
def _compare(model: PreTrainedModel, engine: Any, reference: PreTrainedModel) -> None:
    assert type(model) is type(reference)
    assert model.dtype == reference.dtype
    assert not model.training
    experts = {f"{layer.name}.{name}" for layer in find_moe_layers(model) for name in layer.expert_parameters()}
    rest = [{name: tensor for name, tensor in _tensors(one) if name not in experts} for one in (model, reference)]
    _assert_same(*rest)
    assert _shared(rest[0]) == _shared(rest[1]), "tied differently"
    layers = find_moe_layers(reference)
    layouts = [ExpertLayout.in_place(layer, torch.device("cpu")) for layer in layers]
    assert engine.records.layouts == layouts, "types, shapes or phases of the experts differ"
    for layer in layers:
        for expert in range(layer.num_experts):
            views = layouts[layer.index].views(engine.records.record(layer.index, expert), expert)
            for name, parameter in layer.expert_parameters().items():
                assert torch.equal(views[name], parameter[expert]), f"{layer.name}.{name} of expert {expert}"
    assert model.generation_config.to_dict() == reference.generation_config.to_dict()
    for one, other in zip(_outputs(model), _outputs(reference), strict=True):
        assert torch.equal(one, other), "outputs differ"


def _outputs(model: PreTrainedModel) -> tuple[torch.Tensor, ...]:
    """Logits of a batch, and tokens and logits of a prompt's continuation."""
    batch = families.batch(model)
    done = model.generate(**{key: value[1:] for key, value in batch.items()}, **GENERATION)
    return families.logits_of(model, batch), done.sequences, torch.stack(done.logits)


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


def _shared(tensors: dict[str, torch.Tensor]) -> set[tuple[str, ...]]:
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    return {tuple(group) for group in names.values() if len(group) > 1}


def run(kinds: list[str], families_: tuple[str, ...] = FAMILIES, dtypes: tuple[str, ...] = DTYPES) -> Counter[str]:
    """Every kind of every family in every type: number of folders by what became of them; failures are printed."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        for family in families_:
            for name in kinds:
                path = Path(scratch) / family / name
                try:
                    make(name, family, path)
                except NotHere:
                    counts["not possible"] += len(dtypes)
                    continue
                for dtype in dtypes:
                    try:
                        result = outcome(name, family, path, dtype)
                    except Exception as error:
                        result = Outcome("other", f"{type(error).__name__}: {error}")
                    counts[result.verdict] += 1
                    print(
                        f"{family:24} {name:40} {dtype:9} {result.verdict:8} {result.message.replace(str(path), '.')}", flush=True
                    )
    return counts


if __name__ == "__main__":
    from transformers.utils import logging

    logging.set_verbosity_error()
    found = run(sys.argv[1:] or list(KINDS))
    print(f"{found['equal']} equal to from_pretrained, {found['refused']} refused, {found['other']} other")
    raise SystemExit(found["other"] > 0)
