"""Bytes of packed experts against counts by hand."""

import pytest

from finemoe.errors import FinemoeError
from finemoe.models.geometry import Geometry
from finemoe.packing.gguf_mixes import type_in_mix
from finemoe.paths import MODEL_CONFIGS
from tests.models.packed_configs import FP8, gpt_oss_20b, pack_quantized, qwen3_30b_a3b, qwen3_30b_a3b_fp8

PROJECTION = 768 * 2048  # weights of a matrix of Qwen3-30B-A3B, gate, up and down alike


def test_gpt_oss_in_mxfp4():
    geometry = Geometry.from_config(gpt_oss_20b())
    gate_up = 5760 * 90 * 16 + 5760 * 90  # rows of 90 blocks: 16 bytes each, and a scale
    down = 2880 * 90 * 16 + 2880 * 90
    biases = 2 * 5760 + 2 * 2880  # bf16
    assert geometry.expert_bytes == gate_up + down + biases == 13_236_480
    assert geometry.unpacked_expert_bytes == 2 * (3 * 2880 * 2880 + 3 * 2880) == 49_783_680
    assert geometry.all_experts_bytes == 24 * 32 * 13_236_480
    assert geometry.expert_format == "mxfp4"


def test_qwen3_in_fp8():
    geometry = Geometry.from_config(qwen3_30b_a3b_fp8())
    assert geometry.expert_bytes == 3 * (PROJECTION + 6 * 16 * 4) == 4_719_744  # a float32 for each block of 128 x 128
    assert geometry.unpacked_expert_bytes == 6 * PROJECTION
    assert geometry.all_experts_bytes == 48 * 128 * 4_719_744
    assert geometry.expert_format == "fp8"


def test_gate_and_up_have_their_own_scales():
    narrow = {**qwen3_30b_a3b_fp8(), "moe_intermediate_size": 192}
    gate_up = 2 * (192 * 2048 + 2 * 16 * 4)  # two rows of blocks each, of which the second ones are half full
    assert Geometry.from_config(narrow).expert_bytes == gate_up + 2048 * 192 + 16 * 2 * 4


def test_one_scale_a_weight_takes_sixteen_bytes():
    told = FP8 | {"weight_block_size": None}
    assert Geometry.from_config({**qwen3_30b_a3b(), "quantization_config": told}).expert_bytes == 3 * (PROJECTION + 16)


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 128), (8, 32)])
def test_whole_numbers_of_compressed_tensors(bits, group):
    geometry = Geometry.from_config({**qwen3_30b_a3b(), "quantization_config": pack_quantized(bits, group)})
    packed, scales, shape = PROJECTION * bits // 8, PROJECTION // group * 2, 16
    assert geometry.expert_bytes == 3 * (packed + scales + shape)
    assert geometry.expert_format == f"compressed-tensors int{bits}"


def test_zero_points_of_compressed_tensors():
    asymmetric = Geometry.from_config({**qwen3_30b_a3b(), "quantization_config": pack_quantized(4, 32, symmetric=False)})
    symmetric = Geometry.from_config({**qwen3_30b_a3b(), "quantization_config": pack_quantized(4, 32)})
    assert asymmetric.expert_bytes - symmetric.expert_bytes == 3 * PROJECTION // 32 // 2  # four bits for each group


@pytest.mark.parametrize(
    ("told", "all_bytes"),
    [
        ({**FP8, "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate"]}, 48 * 128 * 4_719_744),
        ({**FP8, "modules_to_not_convert": ["model.layers.0.mlp"]}, 128 * 6 * PROJECTION + 47 * 128 * 4_719_744),
        ({**pack_quantized(8, 32), "ignore": ["re:.*experts.*"]}, 48 * 128 * 6 * PROJECTION),
    ],
)
def test_what_a_quantisation_leaves_out_is_not_packed(told, all_bytes):
    geometry = Geometry.from_config({**qwen3_30b_a3b(), "quantization_config": told})
    assert geometry.all_experts_bytes == all_bytes
    assert geometry.expert_bytes == (4_719_744 if all_bytes == 48 * 128 * 4_719_744 else 6 * PROJECTION)


def test_experts_that_are_not_packed_count_as_before():
    geometry = Geometry.from_config(MODEL_CONFIGS / "gpt-oss-20b-bf16.json")
    assert geometry.expert_format == "bf16"
    assert geometry.expert_bytes == geometry.unpacked_expert_bytes == 2 * geometry.expert_params
    assert geometry.all_experts_bytes == 24 * 32 * geometry.expert_bytes


def test_down_has_more_bits_in_every_other_layer_of_q4_k_m():
    """llama.cpp's rule at 48 layers: the first and last six, and of those between every third."""
    more = [block for block in range(48) if type_in_mix("Q4_K_M", True, block, 48) == "Q6_K"]
    assert more == [0, 1, 2, 3, 4, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35, 38, 41, 42, 43, 44, 45, 46, 47]
    assert {type_in_mix("Q4_K_M", False, block, 48) for block in range(48)} == {"Q4_K"}
    assert [type_in_mix("Q4_K_S", True, block, 48) for block in (5, 6)] == ["Q5_K", "Q4_K"]


@pytest.mark.parametrize(
    ("mix", "smaller", "larger", "num_larger"),
    [
        ("Q4_K_M", 3 * 144, 2 * 144 + 210, 24),
        ("Q4_K", 3 * 144, 2 * 144 + 210, 24),
        ("Q5_K_M", 3 * 176, 2 * 176 + 210, 24),
        ("Q6_K", 3 * 210, 3 * 210, 0),
        ("Q4_0", 3 * 8 * 18, 3 * 8 * 18, 0),
        ("Q8_0", 3 * 8 * 34, 3 * 8 * 34, 0),
    ],
)
def test_a_gguf_mix(mix, smaller, larger, num_larger):
    """Bytes for 256 weights of each matrix, in a type's blocks of 256 or 32."""
    geometry = Geometry.from_config(qwen3_30b_a3b(), mix)
    assert geometry.expert_bytes == PROJECTION // 256 * larger, "a slot holds the largest"
    assert geometry.all_experts_bytes == 128 * PROJECTION // 256 * (num_larger * larger + (48 - num_larger) * smaller)
    assert geometry.expert_format == f"gguf {mix}"
    assert geometry == Geometry.from_config(qwen3_30b_a3b_fp8(), mix), "a mix is made of the weights, however they are packed"


def test_rows_that_fit_no_block_of_256_get_another_type():
    """Qwen1.5-MoE's down has rows of 1408, 44 blocks of 32: Q5_0 instead of Q4_K, Q8_0 instead of Q6_K."""
    geometry = Geometry.from_config(MODEL_CONFIGS / "qwen1.5-moe-a2.7b.json", "Q4_K_M")
    gate_up = 2 * 1408 * 2048 // 256 * 144
    more = sum(block < 3 or block >= 21 or (block - 3) % 3 == 2 for block in range(24))
    assert geometry.expert_bytes == gate_up + 2048 * 44 * 34
    assert geometry.all_experts_bytes == 60 * (24 * gate_up + 2048 * 44 * (more * 34 + (24 - more) * 22))


def test_layers_that_are_dense_count_where_llama_cpp_counts():
    """DeepSeek-V3's first three layers have no experts: the fourth is number 3 of 61."""
    geometry = Geometry.from_config(MODEL_CONFIGS / "deepseek-v3.json", "Q4_K_M")
    more = sum(block < 7 or block >= 53 or (block - 7) % 3 == 2 for block in range(3, 61))
    assert geometry.all_experts_bytes == 256 * 7168 * 2048 // 256 * (58 * 3 * 144 + more * (210 - 144))


@pytest.mark.parametrize(
    ("fields", "mix", "message"),
    [
        (qwen3_30b_a3b(), "Q4_K_XL", "unknown GGUF mix 'Q4_K_XL'; known: Q4_0"),
        (gpt_oss_20b(), "Q8_0", "gpt_oss: no GGUF mix is known for experts whose matrices are transposed"),
        ({**qwen3_30b_a3b(), "moe_intermediate_size": 1400}, "Q4_K_M", "rows of 1400 are not a multiple of a block of Q6_K"),
        ({**qwen3_30b_a3b(), "quantization_config": {"quant_method": "awq"}}, None, "quantised by awq"),
        ({**qwen3_30b_a3b(), "quantization_config": {"load_in_4bit": True}}, None, "quantised by bitsandbytes"),
        (
            {**qwen3_30b_a3b(), "quantization_config": {"quant_method": "compressed-tensors"}},
            None,
            "describes no group of weights",
        ),
        (
            {**qwen3_30b_a3b(), "quantization_config": {**pack_quantized(8, 32), "format": "int-quantized"}},
            None,
            "does not unpack experts quantised by compressed-tensors as int-quantized .8-bit int.",
        ),
        ({**gpt_oss_20b(), "quantization_config": FP8}, None, "quantised by fp8 with transposed matrices"),
    ],
)
def test_what_cannot_be_known_is_refused(fields, mix, message):
    with pytest.raises(FinemoeError, match=message):
        Geometry.from_config(fields, mix)
