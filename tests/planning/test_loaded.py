"""Bytes of loaded models against counts by hand, and against a model that is really loaded."""

import pytest

import finemoe
from finemoe.models.published import config_source
from finemoe.planning.loaded import loaded_models
from tests.packed.gguf_files import Type, qwen3moe

EXPERT = 3 * 768 * 2048  # weights of an expert of Qwen3-30B-A3B
OTHERS = 30_532_122_624 - 48 * 128 * EXPERT


@pytest.fixture(scope="module")
def qwen3():
    source = config_source("qwen3-30b-a3b")
    return {one.expert_format: one for one in loaded_models("qwen3-30b-a3b", source, [None, "mxfp4", "fp8", "int8"])}


def test_qwen3_as_published(qwen3):
    model = qwen3["bf16"]
    assert (model.slot_bytes, model.room_bytes) == (2 * EXPERT, 0)
    assert model.all_experts_bytes == 48 * 128 * 2 * EXPERT
    assert model.other_bytes == 2 * OTHERS
    assert model.kv_bytes == 48 * 2 * 4 * 128 * 2  # layers, keys and values, heads, width, bytes
    assert not model.is_lossy


def test_packing_at_load_is_lossy_and_needs_a_room(qwen3):
    mxfp4 = qwen3["mxfp4"]
    assert mxfp4.slot_bytes == EXPERT // 2 + EXPERT // 32  # four bits, and a byte for every 32
    assert mxfp4.room_bytes == 2 * EXPERT
    assert all(qwen3[name].is_lossy and qwen3[name].other_bytes == 2 * OTHERS for name in ("mxfp4", "fp8", "int8"))


def test_slots_and_bytes_are_inverses(qwen3):
    for model in qwen3.values():
        for slots in (1, 7, model.num_experts):
            num_bytes = model.expert_memory_bytes(slots)
            assert model.slots_in(num_bytes) == slots
            assert model.slots_in(num_bytes - 1) == slots - 1
        assert model.slots_in(-5) == 0


def test_what_is_published_packed_is_not_packed_again():
    (model,) = loaded_models("gpt-oss-20b", config_source("gpt-oss-20b"), [None, "fp8"])
    assert model.positions is None  # the included configuration does not state them
    assert (model.expert_format, model.is_lossy, model.slot_bytes) == ("mxfp4", False, 13_236_480)


def test_a_mix_unpacks_to_bfloat16_as_the_command_line_does():
    (model,) = loaded_models("qwen3-30b-a3b", config_source("qwen3-30b-a3b"), mix="Q4_K_M")
    assert (model.room_bytes, model.other_bytes) == (2 * EXPERT, 2 * OTHERS)
    assert model.slot_bytes == EXPERT // 3 // 256 * (144 + 144 + 210)


@pytest.mark.parametrize("expert_format", [None, "mxfp4"])
def test_a_loaded_miniature_takes_what_was_planned(expert_format):
    (sizes,) = loaded_models("phi-mini", config_source("phi-mini"), [expert_format], is_cuda=False)
    model, engine = finemoe.load("phi-mini", sizes.expert_memory_bytes(100), "on-demand", expert_format=expert_format)
    with engine:
        others = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in model.parameters()}
        found = engine.expert_memory_bytes + sum(others.values())
    assert found == pytest.approx(sizes.expert_memory_bytes(100) + sizes.other_bytes, rel=0.03)


@pytest.mark.parametrize("kind", [Type.Q4_K, Type.BF16, Type.F32])
def test_a_loaded_gguf_file_takes_what_was_planned(kind, tmp_path):
    """In bfloat16, as the command line loads it: experts of that type need no room, all others are unpacked or converted."""
    file = str(qwen3moe(lambda name: kind if "_exps" in name else Type.F32).write(tmp_path))
    (sizes,) = loaded_models(file, file)
    model, engine = finemoe.load(file, sizes.expert_memory_bytes(3), "on-demand", dtype="bfloat16")
    with engine:
        assert engine.expert_memory_bytes == sizes.expert_memory_bytes(3)
        assert engine.records.record_bytes == sizes.slot_bytes
        others = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in model.parameters()}
    assert sum(others.values()) == pytest.approx(sizes.other_bytes, rel=1e-3)
