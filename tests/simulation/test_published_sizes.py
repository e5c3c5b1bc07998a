import json

from finemoe.paths import MODEL_CONFIGS
from finemoe.simulation.cost import ModelSize, size_named
from finemoe.simulation.published_sizes import known_size


def test_the_table_is_what_transformers_makes_of_every_configuration():
    for config in sorted(MODEL_CONFIGS.glob("*.json")):
        expected = ModelSize.from_config(config, config.stem)
        assert known_size(config) == vars(expected)
        assert size_named(config.stem) == expected


def test_a_configuration_that_was_edited_is_not_taken_from_the_table(tmp_path):
    fields = json.loads((MODEL_CONFIGS / "mixtral-8x7b.json").read_text())
    edited = tmp_path / "mixtral-8x7b.json"
    edited.write_text(json.dumps(fields | {"num_hidden_layers": 3}))
    assert known_size(edited) is None
    assert known_size(tmp_path / "deepseek-v3.json") is None  # no such file
    assert known_size(tmp_path / "another.json") is None
