"""Published models whose configuration is included in the project: their names, and their ids on the Hugging Face hub."""

from collections.abc import Callable
from pathlib import Path

from finemoe.errors import FinemoeError
from finemoe.models.shipped import NAMES, resolve
from finemoe.paths import MODEL_CONFIGS
from finemoe.suggestions import suggestion

HUB_IDS = {
    "mistralai/Mixtral-8x7B-v0.1": "mixtral-8x7b",
    "mistralai/Mixtral-8x7B-Instruct-v0.1": "mixtral-8x7b",
    "Qwen/Qwen1.5-MoE-A2.7B": "qwen1.5-moe-a2.7b",
    "Qwen/Qwen1.5-MoE-A2.7B-Chat": "qwen1.5-moe-a2.7b",
    "microsoft/Phi-3.5-MoE-instruct": "phi-3.5-moe",
    "openai/gpt-oss-20b": "gpt-oss-20b",
    "openai/gpt-oss-120b": "gpt-oss-120b",
    "deepseek-ai/DeepSeek-V2-Lite": "deepseek-v2-lite",
    "deepseek-ai/DeepSeek-V2-Lite-Chat": "deepseek-v2-lite",
    "Qwen/Qwen3-30B-A3B": "qwen3-30b-a3b",
    "Qwen/Qwen3-30B-A3B-Base": "qwen3-30b-a3b",
    "Qwen/Qwen3-30B-A3B-Instruct-2507": "qwen3-30b-a3b",
    "Qwen/Qwen3-30B-A3B-Thinking-2507": "qwen3-30b-a3b",
    "Qwen/Qwen3-Coder-30B-A3B-Instruct": "qwen3-30b-a3b",
    "Qwen/Qwen3-235B-A22B": "qwen3-235b-a22b",
    "Qwen/Qwen3-Next-80B-A3B-Instruct": "qwen3-next-80b-a3b",
    "Qwen/Qwen3-Next-80B-A3B-Thinking": "qwen3-next-80b-a3b",
    "allenai/OLMoE-1B-7B-0924": "olmoe-1b-7b",
    "allenai/OLMoE-1B-7B-0924-Instruct": "olmoe-1b-7b",
    "allenai/OLMoE-1B-7B-0125": "olmoe-1b-7b",
    "allenai/OLMoE-1B-7B-0125-Instruct": "olmoe-1b-7b",
    "zai-org/GLM-4.5-Air": "glm-4.5-air",
}


def _silence(text: str) -> None:
    """Say nothing."""


def config_names() -> list[str]:
    """Names of the configurations in data/models/configs."""
    return sorted(path.stem for path in MODEL_CONFIGS.glob("*.json"))


def config_source(name: str, say: Callable[[str], None] = _silence) -> str:
    """What the configuration of a model is read from: the folder of a miniature, a file, or a hub id that can be had.

    Args:
        name: name of a miniature or of a published model, a folder, a file, or a hub id. If the hub cannot be reached, the
            included configuration of a hub id in `HUB_IDS` is used.
        say: called with one line if that happens.
    Raises:
        FinemoeError: there is no such model, or the hub cannot be reached and its configuration is not included.
    """
    if name in NAMES or Path(name).exists():
        return resolve(name)
    if name in config_names():
        return str(MODEL_CONFIGS / f"{name}.json")
    if name.count("/") != 1 or name.startswith((".", "/")):
        known = suggestion(name, [*NAMES, *config_names()])
        raise FinemoeError(f"unknown model {name!r}; {known}, or give a folder, a config.json or a hub id 'owner/name'")
    return _of_hub(name, say)


def _of_hub(hub_id: str, say: Callable[[str], None]) -> str:
    from finemoe.models.hub import require_on_hub

    included = {one.lower(): config for one, config in HUB_IDS.items()}.get(hub_id.lower())
    try:
        is_cached_only = require_on_hub(hub_id)
    except FinemoeError:
        if included is None:
            raise
        say(f"{hub_id} cannot be had from the hub: its configuration in data/models/configs, {included}, is used")
        return str(MODEL_CONFIGS / f"{included}.json")
    if is_cached_only:
        import huggingface_hub.constants

        huggingface_hub.constants.HF_HUB_OFFLINE = True  # or every file of the cached copy would be asked for, with retries
    return hub_id
