"""A replay on described hardware counts a quantised model's experts as they are packed."""

import json

import numpy as np
import pytest

import finemoe
from finemoe.simulation.cost import CostModel, ModelSize
from finemoe.simulation.synthetic import Recipe, synthetic_trace
from finemoe.simulation.testbed import Testbed
from tests.models.packed_configs import gpt_oss_20b, qwen3_30b_a3b, qwen3_30b_a3b_fp8

PACKED, PLAIN = ModelSize.from_config(qwen3_30b_a3b_fp8()), ModelSize.from_config(qwen3_30b_a3b())


def test_experts_are_packed_and_all_else_is_as_it_was():
    assert (PACKED.expert_bytes, PLAIN.expert_bytes) == (4_719_744, 9_437_184)
    assert PACKED.unpacked_bytes == PLAIN.unpacked_bytes == PLAIN.expert_bytes
    assert PACKED.resident_bytes == PLAIN.resident_bytes
    assert PACKED.total_bytes == PLAIN.resident_bytes + 48 * 128 * 4_719_744
    assert ModelSize.from_config(gpt_oss_20b()).expert_bytes == 13_236_480


def test_loads_are_shorter_and_computing_is_not():
    packed, plain = (CostModel(size, Testbed.load("rtx3090")) for size in (PACKED, PLAIN))
    latency = packed.testbed.link_latency_s
    assert (packed.load() - latency) / (plain.load() - latency) == pytest.approx(4_719_744 / 9_437_184)
    assert packed.cache_bytes(0.5) == 48 * 64 * 4_719_744
    tokens = np.array([1, 2, 100])
    assert np.array_equal(packed.expert(tokens), plain.expert(tokens))


def test_a_replay_by_a_configuration_counts_packed_bytes(tmp_path):
    narrow = {"num_hidden_layers": 4, "num_experts": 16, "num_experts_per_tok": 2}
    trace = synthetic_trace(Recipe(0.2, 0.3, 0.4, 8), 4, 16, 2, 1, 6)
    reports = {}
    for name, fields in (("packed", qwen3_30b_a3b_fp8()), ("plain", qwen3_30b_a3b())):
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(fields | narrow))
        reports[name] = finemoe.replay(trace, "on-demand", 0.25, hardware="rtx3090", model=str(file))
    packed, plain = reports["packed"], reports["plain"]
    assert packed.misses == plain.misses > 0
    assert packed.demand_bytes == packed.misses * 4_719_744
    assert plain.demand_bytes == plain.misses * 9_437_184
    assert packed.expert_memory_bytes == 16 * 4_719_744
