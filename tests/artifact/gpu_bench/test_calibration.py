"""Constants that were put into micro-measurements come out of the calibration."""

import math

import numpy as np
import pandas as pd
import pytest

from finemoe.artifact.gpu_bench.calibration import Calibration, write_testbed
from finemoe.artifact.machines.schema import IDLE, LAUNCHING
from finemoe.errors import FinemoeError
from finemoe.paths import MODEL_CONFIGS
from finemoe.simulation.cost import CostModel, ModelSize
from finemoe.simulation.testbed import Testbed
from finemoe.simulation.timed import prefetch_time_s

SIZE = ModelSize.from_config(MODEL_CONFIGS / "qwen1.5-moe-a2.7b.json")
PEAK, LATENCY_S, CHUNK_S = 50e9, 12e-6, 70e-6  # of the link; the last is what a prefetched chunk takes beside
MEMORY, FLOPS = 3e12, 600e12
ADDED_S = {"resident": 0.0, "finemoe": 80e-6}  # by a policy to a layer
LAYER_S, EXPERT_S, EXTRA_KERNEL_S = 400e-6, 55e-6, 30e-6  # host work of a layer and an expert; small kernels of a layer


def copies() -> pd.DataFrame:
    rows, expert = [("read by a kernel", 1, IDLE, SIZE.expert_bytes, 2 * PEAK)], SIZE.expert_bytes
    for main_thread, wait_s in ((IDLE, 0.5), (LAUNCHING, 1.0)):
        rows.append(("queued", 8, main_thread, expert, PEAK if main_thread == IDLE else 0.9 * PEAK))
        for chunk in (2 << 20, expert):
            rows.append(("chunked", 1, main_thread, chunk, chunk / (wait_s * LATENCY_S + chunk / PEAK)))
        chunk = 4 << 20  # of the simulator; the engine's own may be smaller and overlap
        took_s = LATENCY_S + wait_s * CHUNK_S + chunk / PEAK
        rows.append(("as prefetched", 2, main_thread, 2 << 20, chunk / took_s))
    return pd.DataFrame(rows, columns=["mode", "chunks_in_flight", "main_thread", "chunk_bytes", "bytes_per_s"])


def kernels() -> pd.DataFrame:
    rows = []
    for tokens in (1, 64, 4096):
        kernel_s = max(SIZE.expert_bytes / MEMORY, 2 * tokens * SIZE.expert_params / FLOPS)
        rows.append(("expert", tokens, 0, EXPERT_S + kernel_s, kernel_s))
    layer_s = 2 * (SIZE.layer_params + SIZE.head_params / SIZE.num_layers) / MEMORY
    for context in (64, 512):
        rows.append(("layer", 1, context, LAYER_S + layer_s, EXTRA_KERNEL_S + layer_s))
    return pd.DataFrame(rows, columns=["part", "num_tokens", "context_tokens", "seconds", "kernel_seconds"])


def software() -> pd.DataFrame:
    layer_s = LAYER_S + 2 * (SIZE.layer_params + SIZE.head_params / SIZE.num_layers) / MEMORY
    one_s = EXPERT_S + SIZE.expert_bytes / MEMORY
    rows = [(policy, layer_s + SIZE.top_k * one_s + added_s, 2e-4, 3e-4) for policy, added_s in ADDED_S.items()]
    return pd.DataFrame(rows, columns=["policy", "seconds_per_layer", "start_search_s", "gate_search_s"])


def made() -> Calibration:
    return Calibration("a machine", 80e9, SIZE, copies(), kernels(), software())


@pytest.mark.parametrize("policy", ["resident", "finemoe"])
def test_constants_come_back(policy):
    found = made().testbed(policy)
    assert found.link_bytes_per_s == pytest.approx(PEAK)
    assert found.link_latency_s == pytest.approx(LATENCY_S)
    assert found.chunk_overhead_s == pytest.approx(CHUNK_S)
    assert found.memory_bytes_per_s == pytest.approx(MEMORY)
    assert found.flops_per_s == pytest.approx(FLOPS)
    assert found.layer_overhead_s == pytest.approx(LAYER_S + ADDED_S[policy])
    assert found.expert_overhead_s == pytest.approx(EXPERT_S)
    assert found.search_overhead_s == pytest.approx(3e-4)
    assert made().testbed(policy, is_synchronous=True).search_overhead_s == 0.0
    cost, num_chunks = CostModel(SIZE, found), math.ceil(SIZE.expert_bytes / (4 << 20))
    assert cost.load() == pytest.approx(LATENCY_S + SIZE.expert_bytes / PEAK)
    assert prefetch_time_s(cost) == pytest.approx(num_chunks * (LATENCY_S + CHUNK_S) + SIZE.expert_bytes / PEAK)


def test_a_resident_token_takes_what_was_measured():
    """The cost model, asked for a token with nothing to load, gives back the layers' measured time."""
    cost = CostModel(SIZE, made().testbed())
    one = np.ones(1)
    token_s = (
        SIZE.num_layers * float((cost.before_experts(one, 0 * one, 0 * one) + SIZE.top_k * cost.expert(one))[0]) + cost.head()
    )
    assert token_s == pytest.approx(SIZE.num_layers * software().seconds_per_layer[0], rel=1e-6)


def test_the_limit_has_kernels_and_bytes_alone():
    best = made().ideal()
    assert best.layer_overhead_s == pytest.approx(EXTRA_KERNEL_S)
    assert (best.expert_overhead_s, best.link_latency_s, best.search_overhead_s, best.chunk_overhead_s) == (0.0, 0.0, 0.0, 0.0)
    assert CostModel(SIZE, best).load() == pytest.approx(SIZE.expert_bytes / PEAK)


def test_a_written_testbed_is_read_back(tmp_path):
    found = made().testbed()
    write_testbed(found, tmp_path / "one.yaml", "measured")
    again = Testbed.load(tmp_path / "one.yaml")
    for name, value in vars(found).items():
        assert getattr(again, name) == (value if name == "title" else pytest.approx(value, rel=1e-5))


def test_without_copies_nothing_is_known_of_the_link():
    with pytest.raises(FinemoeError, match="no copies were measured, so the link's bandwidth is unknown"):
        Calibration("a machine", 80e9, SIZE, copies()[:1], kernels(), software()).testbed()


def test_copies_of_another_version_are_refused():
    old = copies()[lambda table: table["mode"] != "as prefetched"]
    calibration = Calibration("a machine", 80e9, SIZE, old, kernels(), software())
    with pytest.raises(FinemoeError, match="no copies were measured 'as prefetched'"):
        calibration.testbed()
