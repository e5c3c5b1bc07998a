"""What the published models of docs/running.md take, and how much expert memory an 8 GB GPU has for each.

`python -m finemoe.artifact.pipeline.running_sizes` computes the table from the configurations in data/models/configs, as
`finemoe info --hardware laptop-8gb` does.
"""

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from finemoe.artifact.plotting import save_table
from finemoe.paths import DATA, MODEL_CONFIGS
from finemoe.planning.choices import room_bytes
from finemoe.planning.loaded import loaded_models
from finemoe.planning.place import place_of

MODELS = {
    "Qwen/Qwen1.5-MoE-A2.7B-Chat": "qwen1.5-moe-a2.7b",
    "Qwen/Qwen3-30B-A3B": "qwen3-30b-a3b",
    "openai/gpt-oss-20b": "gpt-oss-20b",
    "allenai/OLMoE-1B-7B-0924-Instruct": "olmoe-1b-7b",
    "deepseek-ai/DeepSeek-V2-Lite-Chat": "deepseek-v2-lite",
}
HARDWARE, CONTEXT = "laptop-8gb", 4096


def sizes_of(hub_id: str) -> dict[str, Any]:
    """A model's row: its bytes, and the largest expert memory on the machine next to the other weights and a context."""
    config = MODEL_CONFIGS / f"{MODELS[hub_id]}.json"
    (model,) = loaded_models(MODELS[hub_id], str(config))
    room = room_bytes(model, place_of(HARDWARE), CONTEXT)
    return {
        "model": hub_id,
        "expert_format": model.expert_format,
        "download_bytes": model.all_experts_bytes + model.other_bytes,
        "all_experts_bytes": model.all_experts_bytes,
        "other_bytes": model.other_bytes,
        "kv_bytes_per_token": model.kv_bytes,
        "smallest_expert_memory_bytes": model.smallest_bytes,
        "largest_expert_memory_bytes": min(room, model.expert_memory_bytes(model.num_experts)),
        "hardware": HARDWARE,
        "context": CONTEXT,
    }


def write_table(
    output: Annotated[Path, typer.Option(help="where to write the table")] = DATA / "reference" / "running_sizes.csv",
) -> None:
    """Compute and write the table."""
    save_table(pd.DataFrame([sizes_of(hub_id) for hub_id in MODELS]).assign(executor="computed"), output)


if __name__ == "__main__":
    typer.run(write_table)
