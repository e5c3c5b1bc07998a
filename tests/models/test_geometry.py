"""Geometry against the paper's printed counts and against counts by hand."""

import pytest

from finemoe.errors import FinemoeError
from finemoe.models.geometry import Geometry
from finemoe.paths import MODEL_CONFIGS


@pytest.mark.parametrize(
    ("model", "layers", "experts", "top_k", "active", "total"),
    [
        ("mixtral-8x7b", 32, 8, 2, "12.9", "46.7"),
        ("qwen1.5-moe-a2.7b", 24, 60, 4, "2.7", "14.3"),
        ("phi-3.5-moe", 32, 16, 2, "6.6", "41.9"),
    ],
)
def test_table_1_to_its_printed_precision(model, layers, experts, top_k, active, total):
    geometry = Geometry.from_config(MODEL_CONFIGS / f"{model}.json")
    assert (geometry.num_layers, geometry.num_experts, geometry.experts_per_token) == (layers, experts, top_k)
    assert f"{geometry.active_params / 1e9:.1f}" == active
    assert f"{geometry.total_params / 1e9:.1f}" == total
    assert geometry.dense_layers == 0


def test_counts_by_hand():
    hidden, width, vocabulary, heads = 64, 48, 100, 4
    fields = {
        "model_type": "mixtral",
        "hidden_size": hidden,
        "intermediate_size": width,
        "vocab_size": vocabulary,
        "num_hidden_layers": 3,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
    }
    geometry = Geometry.from_config(fields)
    expert = 3 * hidden * width
    layer = 4 * hidden * hidden + 8 * hidden + 2 * hidden + 8 * expert
    total = 3 * layer + 2 * vocabulary * hidden + hidden
    assert (geometry.expert_params, geometry.expert_bytes) == (expert, 2 * expert)
    assert (geometry.total_params, geometry.active_params) == (total, total - 3 * 6 * expert)
    assert geometry.idle_share == pytest.approx(3 * 6 * expert / total)


def test_bad_configurations_are_named(tmp_path):
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    for source, message in [
        (tmp_path / "none.json", "no such configuration file"),
        (tmp_path / "bad.json", "not JSON"),
        ({"model_type": "mixtrall"}, "model_type 'mixtrall' is not known"),
        ({"model_type": "llama", "num_hidden_layers": 1}, "no experts that dispatch"),
        (tmp_path, "no configuration found"),
    ]:
        with pytest.raises(FinemoeError, match=message):
            Geometry.from_config(source)
