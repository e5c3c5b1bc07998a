"""Testbeds, the cost model against formulas by hand, and replay in virtual time."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

import finemoe
from finemoe.errors import FinemoeError
from finemoe.paths import MODEL_CONFIGS
from finemoe.policies import make_policy
from finemoe.simulation.arrangement import Arrangement
from finemoe.simulation.asking import ask
from finemoe.simulation.cost import CostModel, ModelSize
from finemoe.simulation.events import contexts_of, demanded_sets, iteration_blocks, tokens_of
from finemoe.simulation.replay import replay_setup
from finemoe.simulation.testbed import FOLDER, known_testbeds
from finemoe.simulation.testbed import Testbed as Machine  # pytest takes what begins with Test for tests
from finemoe.traces import RoutingTrace
from tests.simulation.golden import FILE
from tests.simulation.test_events import mixed_trace

TRACE = RoutingTrace.load(FILE)
HISTORY, SERVED = TRACE.split("history"), TRACE.split("served")
# Sizes like the golden trace's: 4 layers of 6 experts.
SIZE = ModelSize("toy", 4, 6, 2, 64, 10**6, 3 * 10**5, 10**6, 4 * (6 * 10**6 + 3 * 10**5) + 2 * 10**6, 64, 256)


@pytest.fixture
def toy(monkeypatch):
    """Replays of the golden trace mean a toy model."""
    monkeypatch.setattr("finemoe.simulation.replay.size_of", lambda *_: SIZE)


@pytest.mark.parametrize("name", known_testbeds())
def test_every_profile_is_complete_and_sourced(name):
    testbed = Machine.load(name)
    assert testbed.title
    assert testbed.load_bytes_per_s <= testbed.link_bytes_per_s
    text = (FOLDER / f"{name}.yaml").read_text()
    assert text.count("source:") == 13


def test_the_paper_s_testbeds_are_there():
    paper = Machine.load("6x-rtx3090")
    assert (paper.devices, paper.memory_bytes) == (6, 24e9)
    assert Machine.load("a100-80gb").memory_bytes == 80e9
    assert {"h200", "rtx3090", "rtx4090", "laptop-8gb", "cpu-disk"} <= set(known_testbeds())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("devices: {value: 1, ", "devices: {value: 1.5, "), "it must be a whole number"),
        (("memory_bytes: {value: 24.0e+9", "memory_bytes: {value: 24e9"), "memory_bytes is '24e9', not a number of its unit"),
        (("link_bytes_per_s: {value: 26.0e+9", "link_bytes_per_s: {value: 0"), "link_bytes_per_s must be positive"),
        (("link_latency_s", "link_latencies"), "unknown constant 'link_latencies'"),
        (('source: "one device"', 'source: ""'), "devices must be written {value: NUMBER, source: WHERE IT COMES FROM}"),
        (("layer_overhead_s:", "# layer_overhead_s:"), "layer_overhead_s is missing"),
    ],
)
def test_a_profile_s_mistakes_are_named(tmp_path, change, message):
    path = tmp_path / "mine.yaml"
    path.write_text((FOLDER / "rtx3090.yaml").read_text().replace(*change, 1))
    with pytest.raises(FinemoeError) as caught:
        Machine.load(path)
    assert message in str(caught.value)


def test_a_user_s_own_profile_is_loaded_by_its_path(tmp_path):
    shutil.copy(FOLDER / "rtx3090.yaml", tmp_path / "mine.yaml")
    assert Machine.load(tmp_path / "mine.yaml") == Machine.load("rtx3090")
    with pytest.raises(FinemoeError, match=r"no testbed 'rtx9090'; did you mean 'rtx4090'\? known: 6x-rtx3090, a100-80gb"):
        Machine.load("rtx9090")


def test_a_profile_says_how_its_engine_works(tmp_path):
    """In line with inference or beside it, and in which order; without a word, as the paper's system does."""
    text, path = (FOLDER / "rtx3090.yaml").read_text(), tmp_path / "mine.yaml"
    path.write_text(text + "hand_over_s: {value: 1.0e-4, source: measured}\nhits_first: {value: 1, source: its engine}\n")
    assert Machine.load(path) == replace(Machine.load("rtx3090"), hand_over_s=1e-4, hits_first=1)
    assert {(one.hand_over_s, one.hits_first) for one in map(Machine.load, known_testbeds())} == {(0.0, 0)}
    path.write_text(text + "hits_first: {value: 2, source: its engine}\n")
    with pytest.raises(FinemoeError, match="hits_first is 2; it must be 1 or 0"):
        Machine.load(path)


def test_a_replay_works_as_its_testbed_says(toy):
    """The same loads: hits first are computed while they come, and a search at once is inference's own time."""
    slow_searches = replace(Machine.load("rtx3090"), search_overhead_s=1e-3)

    def served(policy, **change):
        return finemoe.replay(SERVED, policy, 0.5, hardware=replace(slow_searches, **change), history=HISTORY)

    in_order, as_they_come = (served("on-demand", hits_first=one) for one in (0, 1))
    assert as_they_come.layer_misses == in_order.layer_misses
    assert as_they_come.tpot_s < in_order.tpot_s
    beside, at_once = (served("finemoe", hand_over_s=one) for one in (0.0, 1.0))
    assert at_once.tpot_s > beside.tpot_s + 2e-3  # an iteration's start and some gates search


def test_sizes_of_mixtral_add_up():
    """8 experts of 3 matrices 4096 x 14336; attention 4096 x (4096 + 1024 + 1024 + 4096); a router; two norms; two embeddings."""
    size = ModelSize.from_config(MODEL_CONFIGS / "mixtral-8x7b.json")
    assert size.expert_params == 3 * 4096 * 14336
    assert size.layer_params == pytest.approx(4096 * (4096 + 2 * 1024 + 4096) + 8 * 4096 + 2 * 4096, rel=1e-5)
    assert size.head_params == 32000 * 4096
    assert (size.attention_width, size.kv_bytes) == (4096, 2 * 2 * 8 * 128)
    assert size.resident_bytes == size.total_bytes - 32 * 8 * size.expert_bytes
    assert ModelSize.known(32, 8, 2).name == "mixtral-8x7b"
    with pytest.raises(FinemoeError, match="no published configuration of 3 layers x 5 experts / 2"):
        ModelSize.known(3, 5, 2)


def test_a_part_takes_the_longer_of_arithmetic_and_reading():
    testbed, size = Machine.load("rtx3090"), ModelSize.from_config(MODEL_CONFIGS / "mixtral-8x7b.json")
    cost = CostModel(size, testbed)
    one, many = cost.expert(np.array([1.0, 5000.0])).tolist()
    assert one == pytest.approx(testbed.expert_overhead_s + size.expert_bytes / testbed.memory_bytes_per_s)
    assert many == pytest.approx(testbed.expert_overhead_s + 2 * 5000 * size.expert_params / testbed.flops_per_s)
    assert cost.load() == pytest.approx(testbed.link_latency_s + size.expert_bytes / 26e9)
    decode = cost.before_experts(np.array([1.0]), np.array([1000.0]), np.array([1000.0]))[0]
    moved = 2 * size.layer_params + 1000 * size.kv_bytes
    assert decode == pytest.approx(testbed.layer_overhead_s + moved / testbed.memory_bytes_per_s)
    assert cost.exchange(np.array([1.0]))[0] == 0
    assert cost.search(np.array([0.0, 2e9])).tolist() == [0.0, pytest.approx(testbed.search_overhead_s + 0.1)]
    six = CostModel(size, Machine.load("6x-rtx3090"))
    assert six.load() == pytest.approx(10e-6 + size.expert_bytes / min(26e9, 140e9 / 6))


def test_tokens_and_contexts_are_counted():
    trace = mixed_trace(3)
    for block in iteration_blocks(trace, 7):
        begins, demanded = demanded_sets(trace, block)
        found, place = tokens_of(trace, block, begins, demanded), 0
        contexts = contexts_of(Arrangement.one_by_one(trace).contexts, block)
        for number in range(block.num_iterations):
            rows = range(block.rows.start + int(block.starts[number]), block.rows.start + int(block.starts[number + 1]))
            first = int(trace.offsets[block.requests[number]])
            assert contexts[number] == sum(row - first + 1 for row in rows)
            for layer in range(trace.num_layers):
                chosen = [int(e) for row in rows for e in trace.expert_ids[row, layer]]
                for expert in sorted(set(chosen)):
                    assert (demanded[place], found[place]) == (expert, chosen.count(expert))
                    place += 1


@pytest.mark.parametrize(
    "policy", ["on-demand", "finemoe", "moe-infinity", "mixtral-offloading", "deepspeed-inference", "oracle"]
)
def test_virtual_time_adds_up(toy, policy):
    report = finemoe.replay(SERVED, policy, 0.4, hardware="rtx3090", history=HISTORY, prefetch_distance=2)
    assert report.accesses == report.hits + report.late + report.misses
    assert report.prefetched_bytes == report.useful_bytes + report.wasted_bytes + report.unused_resident_bytes
    assert report.demand_bytes == SIZE.expert_bytes * report.misses
    assert report.num_prefills == SERVED.num_requests
    total = report.ttft_s * report.num_prefills + report.tpot_s * report.num_decode_steps
    assert total == pytest.approx(sum(r.ttft_s + r.tpot_s * r.num_decode_steps for r in report.requests))
    assert 0 <= report.stall_s < total
    again = finemoe.replay(SERVED, policy, 0.4, hardware="rtx3090", history=HISTORY, prefetch_distance=2)
    assert again == report


def test_no_offload_takes_the_roofline_s_time_and_on_demand_its_loads_more(toy):
    """On one device: what computing takes; and with one slot every load is waited for in full."""
    cost = CostModel(SIZE, Machine.load("rtx3090"))
    work = 0.0
    for request, _, rows in SERVED.iterations():
        n = rows.stop - rows.start
        context = sum(row - int(SERVED.offsets[request]) + 1 for row in range(rows.start, rows.stop))
        kept = n if n > 1 else context  # keys and values are read once: a prompt's own, a decoded token's context
        work += 4 * cost.before_experts(*(np.array([float(value)]) for value in (n, context, kept)))[0] + cost.head()
        for layer in range(4):
            chosen = SERVED.expert_ids[rows, layer].reshape(-1).tolist()
            work += sum(cost.expert(np.array([float(chosen.count(e))]))[0] for e in set(chosen))
    resident = finemoe.replay(SERVED, "no-offload", hardware="rtx3090")
    assert resident.tpot_s * resident.num_decode_steps + resident.ttft_s * resident.num_prefills == pytest.approx(work)
    assert (resident.stall_s, resident.misses) == (pytest.approx(0, abs=1e-9), 0)
    one = finemoe.replay(SERVED, "on-demand", SIZE.expert_bytes, hardware="rtx3090")
    loads = one.demand_bytes / SIZE.expert_bytes
    assert one.stall_s == pytest.approx(loads * cost.load())
    assert one.tpot_s * one.num_decode_steps + one.ttft_s * one.num_prefills == pytest.approx(work + loads * cost.load())


def test_what_does_not_fit_is_refused():
    trace = RoutingTrace.from_topk(np.broadcast_to([0, 1], (1, 32, 2)), np.full((1, 32, 2), 0.5), [0, 1], 8)
    with pytest.raises(FinemoeError, match=r"mixtral-8x7b would take 87.0 GiB on one RTX 3090, PCIe 4.0, which has 22.4 GiB"):
        finemoe.replay(trace, "no-offload", hardware="rtx3090")
    assert finemoe.replay(trace, "no-offload", hardware="6x-rtx3090").num_decode_steps == 1
    with pytest.raises(FinemoeError, match=r"phi-3\.5-moe has 32 layers x 16 experts / 2, the trace 32 layers x 8 experts / 2"):
        finemoe.replay(trace, hardware="rtx3090", model="phi-3.5-moe")


@pytest.mark.parametrize("history", [None, HISTORY], ids=["online", "offline"])
@pytest.mark.parametrize("policy", ["finemoe", "promoe", "moe-infinity", "mixtral-offloading", "deepspeed-inference"])
def test_times_do_not_depend_on_how_a_trace_is_cut_into_blocks(toy, monkeypatch, policy, history):
    """What an online policy knows grows from iteration to iteration, and so does the time of its search."""
    whole = finemoe.replay(SERVED, policy, 0.4, "rtx3090", history, prefetch_distance=2)
    monkeypatch.setattr("finemoe.simulation.replay.block_rows", lambda _: 3)
    assert finemoe.replay(SERVED, policy, 0.4, "rtx3090", history, prefetch_distance=2) == whole


def test_a_policy_reads_what_it_has_learned_so_far():
    """FineMoE online: nothing in the first iteration, then one record more for every row, up to C; none past layer L - d."""
    block = next(iteration_blocks(SERVED, 10**6))
    policy = make_policy("finemoe", replay_setup(SERVED, prefetch_distance=1, store_capacity=20))
    _, read = ask(policy, block, *demanded_sets(SERVED, block), hidden_size=64)
    num_rows = np.diff(block.starts)
    known = np.minimum(np.concatenate([[0], np.cumsum(num_rows)[:-1]]), 20)
    np.testing.assert_array_equal(read[:, 0], num_rows * known * 2 * 64)
    for layer in range(3):
        np.testing.assert_array_equal(read[:, 1 + layer], num_rows * known * 2 * 6)
    assert not read[:, 4].any()


def test_waiting_for_a_policy_is_no_waiting_for_weights(toy):
    """Over an endless link a synchronous system stalls for nothing, however long it searches."""
    endless = replace(Machine.load("rtx3090"), link_bytes_per_s=1e30, host_bytes_per_s=1e30, link_latency_s=0.0)
    slow = replace(endless, search_overhead_s=0.01)
    for policy in ("moe-infinity", "mixtral-offloading"):
        quick, searching = (finemoe.replay(SERVED, policy, 0.4, one, HISTORY) for one in (endless, slow))
        assert searching.tpot_s > quick.tpot_s + 0.01
        assert searching.stall_s == pytest.approx(0, abs=1e-9)


def test_the_first_device_must_hold_its_cache_and_all_other_weights():
    """6 devices of 5 MB: the caches' share of 1.0 is 48 MB / 6 = 8 MB each; see SIZE."""
    cost = CostModel(SIZE, replace(Machine.load("6x-rtx3090"), memory_bytes=float(SIZE.resident_bytes + 8 * 10**6)))
    assert cost.fits(1.0)
    assert not replace(cost, testbed=replace(cost.testbed, memory_bytes=cost.testbed.memory_bytes - 1)).fits(1.0)


@pytest.mark.parametrize("change", [{"link_bytes_per_s": -1.0}, {"flops_per_s": float("nan")}, {"devices": 0}, {"devices": 1.5}])
def test_a_testbed_made_in_code_is_checked_too(change):
    with pytest.raises(FinemoeError, match=next(iter(change))):
        replace(Machine.load("rtx3090"), **change)


def test_files_that_are_no_yaml_are_named(tmp_path):
    (tmp_path / "a.yaml").write_text("title: [")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("a.yaml", "b.yaml"):
        with pytest.raises(FinemoeError, match=f"{name}: not a YAML file"):
            Machine.load(tmp_path / name)


def test_numpy_numbers_are_numbers(toy):
    options = {"prefetch_distance": np.int64(2), "store_capacity": np.int32(5), "batch_size": np.int64(2), "devices": np.int64(1)}
    finemoe.replay(SERVED, "finemoe", np.float32(0.4), "rtx3090", HISTORY, **options)


def test_what_a_replay_must_not_be_given():
    with pytest.raises(FinemoeError, match="is served and in the history"):
        finemoe.replay(SERVED, "finemoe", history=TRACE)
    names = (SERVED.request_ids * HISTORY.num_requests)[: HISTORY.num_requests]
    finemoe.replay(SERVED, "finemoe", history=replace(HISTORY, request_ids=names))  # the same requests by name only
    with pytest.raises(FinemoeError, match="the history is of 'another', not of"):
        finemoe.replay(SERVED, "promoe", history=replace(HISTORY, model="another"))
    with pytest.raises(FinemoeError, match="model selects the sizes"):
        finemoe.replay(SERVED, "finemoe", model="mixtral-8x7b")
    with pytest.raises(FinemoeError, match="expert_bytes is for an instant link"):
        finemoe.replay(SERVED, "finemoe", hardware="rtx3090", expert_bytes=5)
    with pytest.raises(FinemoeError, match=r"store_capacity is 1\.5"):
        finemoe.replay(SERVED, "finemoe", store_capacity=1.5)
