"""Included configurations against the counts that the publishers state, and names that stand for them."""

import pytest

from finemoe.errors import FinemoeError
from finemoe.models.published import HUB_IDS, config_names, config_source
from finemoe.paths import MINIATURES, MODEL_CONFIGS
from finemoe.simulation.cost import ModelSize, model_size, size_named

# Parameters in all, as the hub shows them for each checkpoint (multi-token prediction layers are not loaded, and not counted).
TOTALS = {
    "qwen3-30b-a3b": 30_532_122_624,
    "olmoe-1b-7b": 6_919_161_856,
    "deepseek-v2-lite": 15_706_484_224,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "mixtral-8x7b": 46_702_792_704,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "qwen3-235b-a22b": 235_093_634_560,
}


@pytest.mark.parametrize(("name", "total"), TOTALS.items())
def test_parameters_are_the_published_ones(name, total):
    assert size_named(name).total_params == total


@pytest.mark.parametrize(("name", "billions"), [("qwen3-next-80b-a3b", 79.7), ("glm-4.5-air", 106.9)])
def test_parameters_to_the_printed_precision(name, billions):
    assert round(size_named(name).total_params / 1e9, 1) == billions


def test_gpt_oss_is_mxfp4_unless_its_unpacked_configuration_is_named():
    packed, unpacked = size_named("gpt-oss-20b"), size_named("gpt-oss-20b-bf16")
    assert packed.expert_bytes == 13_236_480
    assert unpacked.expert_bytes == packed.unpacked_bytes == 49_783_680
    assert ModelSize.known(24, 32, 4) == packed


def test_layers_of_linear_attention_keep_no_keys():
    assert size_named("qwen3-next-80b-a3b").kv_bytes * 48 == 12 * 2 * (
        2 * 2 * 256
    )  # 12 layers, two heads of 256, keys and values


def test_names_of_all_kinds(tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert config_source("qwen-mini") == str(MINIATURES / "qwen-mini")
    assert config_source("qwen3-30b-a3b") == str(MODEL_CONFIGS / "qwen3-30b-a3b.json")
    assert config_source(str(tmp_path)) == str(tmp_path)
    with pytest.raises(FinemoeError, match=r"unknown model 'qwen3-30b'; did you mean 'qwen3-30b-a3b'\?"):
        config_source("qwen3-30b")


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.parametrize("hub_id", ["Qwen/Qwen3-30B-A3B", "openai/gpt-oss-20b", "qwen/qwen1.5-moe-a2.7b-chat"])
def test_without_the_hub_included_configurations_stand_in(no_hub, hub_id):
    told = []
    source = config_source(hub_id, told.append)
    assert source.startswith(str(MODEL_CONFIGS))
    assert told == [
        f"{hub_id} cannot be had from the hub: its configuration in data/models/configs, {told[0].split()[-3][:-1]}, is used"
    ]
    assert model_size(hub_id).total_params > 1e9


def test_without_the_hub_other_ids_are_refused(no_hub):
    with pytest.raises(FinemoeError, match="neither a folder nor in the Hugging Face cache"):
        config_source("someone/some-moe")


def test_every_hub_id_names_an_included_configuration():
    assert set(HUB_IDS.values()) <= set(config_names())
