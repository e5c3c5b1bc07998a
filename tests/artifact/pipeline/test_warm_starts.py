"""The tables of docs/running.md: warm starts on a tiny model, and sizes by hand."""

import json

import pytest

from finemoe.artifact.pipeline import running_sizes
from finemoe.artifact.pipeline.warm_starts import STARTS, start_rows
from finemoe.paths import MODEL_CONFIGS
from tests.published.checkpoints import write_checkpoint


def test_a_start_from_a_profile_serves_the_same_and_hits_more(tmp_path):
    write_checkpoint("olmoe", tmp_path / "olmoe", 2)
    rows = start_rows(str(tmp_path / "olmoe"), "finemoe", ["The sea is salty."], ["Why is the sea salty?"] * 2, 6, 0.5)
    assert [(row["prompt"], row["start"]) for row in rows] == [(number, start) for number in (0, 1) for start in STARTS]
    cold, warm = rows[0], rows[1]
    assert rows[2:] == [cold | {"prompt": 1}, warm | {"prompt": 1}]  # every run starts anew, and counts are the same each time
    assert cold["accesses"] == warm["accesses"]
    assert cold["hits"] < warm["hits"]
    assert cold["preloaded_bytes"] == 0 < warm["preloaded_bytes"]


def test_sizes_are_those_of_the_published_widths():
    """Qwen3-30B-A3B in bf16: three projections an expert; keys and values of 4 heads of 128 in each of 48 layers."""
    found = running_sizes.sizes_of("Qwen/Qwen3-30B-A3B")
    config = json.loads((MODEL_CONFIGS / "qwen3-30b-a3b.json").read_text())
    expert_bytes = 2 * 3 * config["hidden_size"] * config["moe_intermediate_size"]
    assert found["all_experts_bytes"] == config["num_hidden_layers"] * config["num_experts"] * expert_bytes
    assert found["smallest_expert_memory_bytes"] == expert_bytes
    assert found["kv_bytes_per_token"] == 2 * 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
    assert found["download_bytes"] == pytest.approx(2 * 30.5e9, rel=0.01)  # the name says 30B
