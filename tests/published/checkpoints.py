"""Write a checkpoint of one of five published families: its real structure, small widths, random weights."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from tests.published import configurations, templates, tensors
from tests.published.vocabulary import write_tokenizer

_DEEPSEEK_ENDS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
_QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_QWEN_TOKENIZER = {
    "add_prefix_space": False,
    "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    "bos_token": None,
    "clean_up_tokenization_spaces": False,
    "eos_token": "<|im_end|>",
    "errors": "replace",
    "model_max_length": 32768,
    "pad_token": "<|endoftext|>",
    "split_special_tokens": False,
    "tokenizer_class": "Qwen2Tokenizer",
    "unk_token": None,
}


@dataclass(frozen=True)
class Family:
    """What is published of a checkpoint.

    Attributes:
        name: its id on the hub. config: of the model. shapes: of its tensors. shards: names of its files.
        special, plain: see `write_tokenizer`. tokenizer: fields of tokenizer_config.json.
        template: of a chat. template_file: of its own, or "" where tokenizer_config.json holds it.
        tokens: names of token ids in config.json and generation_config.json, and the tokens.
        generation: the other fields of generation_config.json.
    """

    name: str
    config: dict[str, Any]
    shapes: Callable[[dict[str, Any]], tensors.Shapes]
    shards: list[str]
    special: list[str]
    tokenizer: dict[str, Any]
    template: str
    tokens: dict[str, dict[str, Any]]
    generation: dict[str, Any]
    plain: list[str] = field(default_factory=list)
    template_file: str = ""
    nfc: bool = False


def _shards(count: int, first: int = 1) -> list[str]:
    """gpt-oss counts its files from 0."""
    last = count if first else count - 1
    return [f"model-{number:05}-of-{last:05}.safetensors" for number in range(first, first + count)]


QWEN_ENDS = ["<|im_end|>", "<|endoftext|>"]
FAMILIES = {
    "qwen15": Family(
        "Qwen/Qwen1.5-MoE-A2.7B-Chat",
        configurations.QWEN15,
        tensors.qwen15,
        _shards(8),
        _QWEN_SPECIAL,
        _QWEN_TOKENIZER,
        templates.QWEN15,
        {
            "config": {"bos_token_id": "<|endoftext|>", "eos_token_id": "<|im_end|>"},
            "generation": {"bos_token_id": "<|endoftext|>", "pad_token_id": "<|endoftext|>", "eos_token_id": QWEN_ENDS},
        },
        {"do_sample": True, "repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
        nfc=True,
    ),
    "qwen3": Family(
        "Qwen/Qwen3-30B-A3B",
        configurations.QWEN3,
        tensors.qwen3,
        _shards(16),
        _QWEN_SPECIAL,
        {**_QWEN_TOKENIZER, "add_bos_token": False, "model_max_length": 131072},
        templates.QWEN3,
        {
            "config": {"bos_token_id": "<|endoftext|>", "eos_token_id": "<|im_end|>"},
            "generation": {"bos_token_id": "<|endoftext|>", "pad_token_id": "<|endoftext|>", "eos_token_id": QWEN_ENDS},
        },
        {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95},
        plain=["<tool_call>", "</tool_call>", "<think>", "</think>"],
        nfc=True,
    ),
    "gpt_oss": Family(
        "openai/gpt-oss-20b",
        configurations.GPT_OSS,
        tensors.gpt_oss,
        _shards(3, first=0),
        [
            "<|startoftext|>",
            "<|endoftext|>",
            "<|return|>",
            "<|constrain|>",
            "<|channel|>",
            "<|start|>",
            "<|end|>",
            "<|message|>",
            "<|call|>",
        ],
        {
            "bos_token": "<|startoftext|>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|return|>",
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": 1000000000000000019884624838656,
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
        templates.GPT_OSS,
        {
            "config": {"eos_token_id": "<|return|>", "pad_token_id": "<|endoftext|>"},
            "generation": {
                "bos_token_id": "<|startoftext|>",
                "pad_token_id": "<|endoftext|>",
                "eos_token_id": ["<|return|>", "<|endoftext|>", "<|call|>"],
            },
        },
        {"do_sample": True},
        template_file="chat_template.jinja",
    ),
    "olmoe": Family(
        "allenai/OLMoE-1B-7B-0924-Instruct",
        configurations.OLMOE,
        tensors.olmoe,
        _shards(3),
        ["<|padding|>", "|||IP_ADDRESS|||"],
        {
            "add_bos_token": False,
            "add_eos_token": False,
            "add_prefix_space": False,
            "bos_token": "|||IP_ADDRESS|||",
            "clean_up_tokenization_spaces": True,
            "eos_token": "|||IP_ADDRESS|||",
            "model_max_length": 1000000000000000019884624838656,
            "pad_token": "<|padding|>",
            "tokenizer_class": "GPTNeoXTokenizer",
            "unk_token": None,
        },
        templates.OLMOE,
        {
            "config": {"eos_token_id": "|||IP_ADDRESS|||", "pad_token_id": "<|padding|>"},
            "generation": {"eos_token_id": "|||IP_ADDRESS|||", "pad_token_id": "<|padding|>"},
        },
        {"_from_model_config": True},
    ),
    "deepseek": Family(
        "deepseek-ai/DeepSeek-V2-Lite-Chat",
        configurations.DEEPSEEK,
        tensors.deepseek,
        _shards(4, first=1),
        list(_DEEPSEEK_ENDS),
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": _DEEPSEEK_ENDS[0],
            "clean_up_tokenization_spaces": False,
            "eos_token": _DEEPSEEK_ENDS[1],
            "legacy": True,
            "model_max_length": 16384,
            "pad_token": _DEEPSEEK_ENDS[1],
            "sp_model_kwargs": {},
            "tokenizer_class": "LlamaTokenizerFast",
            "unk_token": None,
        },
        templates.DEEPSEEK,
        {
            "config": {"bos_token_id": _DEEPSEEK_ENDS[0], "eos_token_id": _DEEPSEEK_ENDS[1]},
            "generation": {"bos_token_id": _DEEPSEEK_ENDS[0], "eos_token_id": _DEEPSEEK_ENDS[1]},
        },
        {"_from_model_config": True, "do_sample": True, "temperature": 0.3, "top_p": 0.95},
    ),
}


def write_checkpoint(name: str, folder: Path, num_layers: int | None = None, seed: int = 0) -> Family:
    """A checkpoint of a family in a new folder.

    Args:
        name: one of `FAMILIES`. num_layers: fewer than published, for tests; None for as many.
    """
    family = FAMILIES[name]
    folder.mkdir(parents=True)
    fields = dict(family.tokenizer)
    if family.template_file:
        (folder / family.template_file).write_text(family.template, encoding="utf-8")
    else:
        fields["chat_template"] = family.template
    ids = write_tokenizer(folder, family.special, family.plain, fields, family.nfc)
    config = {**family.config, **_ids(family.tokens["config"], ids), "vocab_size": configurations.VOCABULARY}
    if num_layers is not None:
        config["num_hidden_layers"] = num_layers
        if "layer_types" in config:
            config["layer_types"] = config["layer_types"][:num_layers]
    _write(folder / "config.json", config)
    generation = {**family.generation, **_ids(family.tokens["generation"], ids)}
    _write(folder / "generation_config.json", {**generation, "transformers_version": config["transformers_version"]})
    _save(folder, tensors.values_of(family.shapes(config), min(ids.values()), seed), family.shards)
    return family


def _ids(named: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    return {name: [ids[one] for one in token] if isinstance(token, list) else ids[token] for name, token in named.items()}


def _save(folder: Path, values: dict[str, Any], shards: list[str]) -> None:
    """Files of about equal size, in the tensors' order, and their index."""
    total = sum(value.nbytes for value in values.values())
    parts: list[dict[str, Any]] = [{} for _ in shards]
    place, passed = {}, 0
    for name, value in values.items():
        number = min(passed * len(shards) // total, len(shards) - 1)
        parts[number][name], place[name] = value, shards[number]
        passed += value.nbytes
    for file, part in zip(shards, parts, strict=True):
        save_file(part, folder / file, metadata={"format": "pt"})
    _write(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": place})


def _write(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False), encoding="utf-8")
