"""The whole of it on small made-up traces: rows against replays of their own, and the same routing told in other ways."""

import json
from dataclasses import replace

import numpy as np
import pytest

import finemoe
from finemoe.advice.machine import Machine, sized
from finemoe.advice.predictability import PROMPT
from finemoe.advice.sentences import sentences
from finemoe.advice.sizes import asked_slots, curve_slots, timed_slots
from finemoe.advice.systems import ALL, LIMITS, ON_DEMAND, RESIDENT, RULES
from finemoe.cache.capacity import slots_per_device
from finemoe.errors import FinemoeError
from finemoe.simulation.arrangement import Arrangement
from finemoe.simulation.replay import sweep
from finemoe.simulation.synthetic import Recipe, synthetic_trace
from finemoe.simulation.testbed import Testbed
from finemoe.traces import RoutingTrace

SIZES = (32, 8, 2)  # of Mixtral-8x7B, so that a published model has them
COUNT = SIZES[0] * SIZES[1]
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def trace() -> RoutingTrace:
    made = synthetic_trace(Recipe(0.2, 0.3, 0.6, 8), *SIZES, num_requests=12, tokens_per_request=16)
    probs = made.expert_probs.astype(float)
    probs /= probs.sum(axis=-1, keepdims=True)
    return RoutingTrace.from_topk(made.expert_ids, probs, made.offsets, SIZES[1], model=made.model)


@pytest.fixture(scope="module")
def advice(trace):
    return finemoe.advise(trace, hardware="rtx4090", expert_memories=[0.1, 0.25, 0.5])


def test_hit_rates_are_those_of_replays(trace, advice):
    served = trace.select(served_numbers(trace))
    for rule in ("lru", "next-use", "belady"):
        report = sweep(served, "on-demand", [0.25], [rule])[0]
        (found,) = [row for row in advice.hit_rates if row["rule"] == rule and row["slots"] == COUNT // 4]
        assert found["hit_rate"] == pytest.approx(report.hit_rate)
    assert {row["rule"] for row in advice.hit_rates} == set(RULES)


def served_numbers(trace: RoutingTrace) -> np.ndarray:
    """As they are drawn."""
    order = np.random.default_rng(0).permutation(trace.num_requests)
    return np.sort(order[round(0.7 * trace.num_requests) :])


def test_times_are_those_of_replays_on_the_testbed(trace, advice):
    numbers = served_numbers(trace)
    served, history = trace.select(numbers), trace.select(np.setdiff1d(np.arange(trace.num_requests), numbers))
    roomy = replace(Testbed.load("rtx4090"), memory_bytes=1e12)
    for system, memory in (("on-demand (LRU)", 0.25), ("FineMoE", 0.1), ("MoE-Infinity", 0.1)):
        report = finemoe.replay(served, ALL[system].policy, memory, roomy, history, prefetch_distance=3)
        (found,) = [row for row in advice.times if row["system"] == system and row["slots"] == round(memory * COUNT)]
        assert found["tpot_s"] == pytest.approx(report.tpot_s)
        assert found["hit_rate"] == pytest.approx(report.hit_rate)


def test_what_does_not_fit_is_timed_and_marked(trace, advice):
    fits = {row["slots"]: row["fits"] for row in advice.times if row["system"] in ON_DEMAND}
    size, _ = sized(trace, None)
    room = 24e9 - size.resident_bytes - 16 * size.num_layers * size.kv_bytes
    assert fits == {slots: slots * size.expert_bytes <= room for slots in (26, 64, 128)}
    assert set(fits.values()) == {True, False}
    assert advice.recommendation["slots"] in {slots for slots, does in fits.items() if does}


def test_every_system_is_there_or_left_out_by_name(advice):
    timed = {row["system"] for row in advice.times}
    assert timed | set(advice.left_out) == set(ALL)
    assert set(advice.left_out) == {"Mixtral-Offloading"}
    assert {row["slots"] for row in advice.times if row["system"] == RESIDENT} == {COUNT}


def test_ids_alone_leave_out_what_needs_probabilities_and_change_no_hit_rate(trace, advice):
    ids = RoutingTrace.from_topk(
        trace.expert_ids, np.full(trace.expert_ids.shape, 0.5), trace.offsets, SIZES[1], model=trace.model, has_weights=False
    )
    found = finemoe.advise(ids, hardware="rtx4090", expert_memories=[0.1, 0.25, 0.5])
    assert set(found.left_out) == {"Mixtral-Offloading", "FineMoE", "ProMoE"}
    assert found.hit_rates == advice.hit_rates
    assert found.working_set == advice.working_set


def test_the_same_trace_gives_the_same_advice(trace, advice, tmp_path):
    trace.save(tmp_path / "x.trace")
    again = finemoe.advise(
        RoutingTrace.load(tmp_path / "x.trace", mapped=True), hardware="rtx4090", expert_memories=[0.1, 0.25, 0.5]
    )
    assert json.dumps(again.to_dict()) == json.dumps(advice.to_dict())


def test_without_hardware_there_are_no_times(trace):
    found = finemoe.advise(trace)
    assert (found.machine, found.times, found.recommendation) == (None, [], None)
    assert len(found.hit_rates) > 50
    assert any(text.startswith("Cliff") for text in sentences(found))


def test_sentences_carry_the_recommendation(advice):
    first, call = sentences(advice)[:2]
    assert advice.recommendation["system"] in first
    assert f"{advice.recommendation['row']['tpot_s'] * 1e3:.1f}" in first
    system = ALL[advice.recommendation["system"]]
    assert f"policy={system.policy!r}" in call


def test_a_link_twice_as_fast_is_a_replay_on_such_a_machine(trace, advice):
    (row,) = [row for row in advice.sensitivity if row["change"] == "link x 2"]
    bed = Testbed.load("rtx4090")
    faster = replace(bed, link_bytes_per_s=2 * bed.link_bytes_per_s, host_bytes_per_s=2 * bed.host_bytes_per_s)
    system = ALL[advice.recommendation["on_demand"]["system"]]
    served = trace.select(served_numbers(trace))
    report = finemoe.replay(served, system.policy, row["slots"] / COUNT, faster, eviction=system.eviction)
    assert row["on_demand_s"] == pytest.approx(report.tpot_s)


def test_four_bits_make_four_times_as_many_experts_of_the_same_bytes(advice):
    (row,) = [row for row in advice.sensitivity if row["change"].startswith("experts in 4 bits")]
    assert row["slots"] == min(COUNT, 4 * advice.recommendation["slots"])


def test_context_takes_memory_and_time(trace):
    size, _ = sized(trace, None)
    bed = Testbed.load("rtx4090")
    short, long = (Machine(size, bed, context, context + 16) for context in (0, 32768))
    assert short.room_bytes - long.room_bytes == 32768 * size.num_layers * size.kv_bytes
    contexts = long.arranged(trace).contexts
    assert np.array_equal(contexts, Arrangement.one_by_one(trace).contexts + 32768)


def test_several_devices_share_the_experts(trace):
    """The first holds the rest of the model, keys and values as well, and every device as many experts as it does."""
    size, _ = sized(trace, None)
    bed = replace(Testbed.load("6x-rtx3090"), memory_bytes=10e9)
    machine = Machine(size, bed, 0, 16)
    first = bed.memory_bytes - size.resident_bytes - 16 * size.num_layers * size.kv_bytes
    each = int(first // size.expert_bytes)
    assert machine.fits(6 * each)
    assert not machine.fits(6 * (each + 1))


@pytest.mark.parametrize("sizes", [(32, 8, 2), (24, 60, 4), (58, 256, 8), (1, 3, 3), (2, 4, 1)])
def test_sizes_lie_between_a_layers_k_and_all_experts(sizes):
    layers, experts, top_k = sizes
    slots = timed_slots(*sizes)
    assert slots == sorted(set(slots))
    assert (slots[0] >= min(top_k, layers * experts), slots[-1]) == (True, layers * experts)
    assert layers * top_k in slots
    assert set(slots) <= set(curve_slots(*sizes, slots).tolist())


def test_sizes_that_are_asked_for():
    assert asked_slots([0.5, "10GB"], 1_000_000_000, 100, 1) == [10, 50]
    assert asked_slots(["10GB"], 1_000_000_000, 100, 2) == [20]
    with pytest.raises(FinemoeError, match="bytes need expert_bytes"):
        asked_slots(["10GB"], None, 100, 1)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"context": -1}, "context is -1"),
        ({"expert_bits": 0}, "expert_bits is 0"),
        ({"model": "gpt-oss-20b"}, "24 layers x 32 experts, the trace 32 layers x 8 experts"),
        ({"model": "no-such-model"}, "unknown model"),
        ({"hardware": "no-such-machine"}, "no testbed"),
        ({"expert_memories": [1.5]}, r"share must be in \(0, 1\]"),
        ({"expert_memories": "0.5"}, "give a list of sizes"),
        ({"seed": -1}, "seed is -1"),
        ({"served_rows": 0}, "served_rows is 0"),
        ({"prefetch_distance": 99}, "the trace has 32 layers"),
        ({"context": 10}, "name the machine with hardware"),
    ],
)
def test_bad_input_is_one_line(trace, told, message):
    with pytest.raises(FinemoeError, match=message) as caught:
        finemoe.advise(trace, **told)
    assert "\n" not in str(caught.value)


def test_sizes_that_nobody_knows_need_a_model():
    ids = np.zeros((6, 2, 1), dtype=int)
    strange = RoutingTrace.from_topk(ids, np.ones(ids.shape), [0, 3, 6], 5)
    assert finemoe.advise(strange).trace["expert_bytes"] is None
    with pytest.raises(FinemoeError, match="name the model"):
        finemoe.advise(strange, hardware="rtx4090")


def test_sizes_on_several_devices_are_those_replayed(trace):
    found = finemoe.advise(
        trace, hardware=replace(Testbed.load("6x-rtx3090"), memory_bytes=1e11), served_rows=40, history_rows=40
    )
    sizes = {row["slots"] for row in found.times}
    assert all(slots % 6 == 0 or slots == COUNT for slots in sizes)
    for row in found.times:
        assert slots_per_device(row["expert_memory"], None, COUNT, 6) * 6 in (row["slots"], 43 * 6)


def test_the_call_gives_the_slots_that_are_recommended(advice):
    share = float(sentences(advice)[1].split("expert_memory=")[1].split(",")[0])
    assert slots_per_device(share, None, COUNT) == advice.recommendation["slots"]


def test_a_batch_is_counted_in_steps_and_its_tokens_too(trace):
    rows, half = np.arange(trace.num_rows), trace.num_rows // 2
    batch = trace.arranged(
        rows, np.array([0, half, trace.num_rows]), np.tile(np.repeat(np.arange(half // 4), 4), 2).astype(np.int32)
    )
    found = finemoe.advise(batch, hardware="rtx4090", expert_memories=[0.1])
    assert (found.trace["decode_steps"], found.trace["tokens_per_step"]) == (trace.num_rows // 4, 4.0)
    assert all(row["tokens_per_s"] == pytest.approx(4 / row["tpot_s"]) for row in found.times)
    assert any("4 tokens on average" in note for note in found.notes)


def test_systems_are_scored_on_decoded_tokens(trace):
    """Prompts stand before them in the history, and are left out of what is served."""
    step = np.tile(np.maximum(0, np.arange(16) - 7), trace.num_requests)
    mixed = trace.arranged(np.arange(trace.num_rows), trace.offsets, step.astype(np.int32), (step > 0).astype(np.uint8))
    mixed = replace(mixed, splits=("served",) * 4 + ("history",) * 8)
    recalls = {(row["predictor"], row["distance"]): row["recall"] for row in finemoe.advise(mixed).predictability}
    served = mixed.split("served").decode()
    report = finemoe.replay(served, "moe-infinity", 0.5, history=mixed.split("history"), prefetch_distance=3)
    assert recalls["MoE-Infinity", 3] == pytest.approx(report.recall_at_k)
    assert (PROMPT, None) in recalls
    assert all(name != PROMPT for name, _ in recalls_of(mixed.decode()))


def recalls_of(trace: RoutingTrace) -> list[tuple[str, int | None]]:
    return [(row["predictor"], row["distance"]) for row in finemoe.advise(trace).predictability]


def test_a_trace_says_what_an_expert_takes_without_a_model():
    ids = np.zeros((6, 2, 1), dtype=int)
    strange = RoutingTrace.from_topk(ids, np.ones(ids.shape), [0, 3, 6], 5, expert_bytes=(1000, 2000))
    found = finemoe.advise(strange, expert_memories=["6kB"])
    assert (found.trace["expert_bytes"], found.slots) == (2000, [3])


def test_more_memory_would_pay_is_said_of_what_does_not_fit(advice):
    text = next(text for text in sentences(advice) if text.startswith("More memory"))
    fastest = min((row for row in advice.times if not row["fits"] and row["system"] not in LIMITS), key=lambda row: row["tpot_s"])
    assert fastest["system"] in text
    assert f"{fastest['tpot_s'] * 1e3:.1f}" in text


def test_an_empty_trace_is_refused():
    ids = np.zeros((0, 2, 1), dtype=int)
    with pytest.raises(FinemoeError, match="has no tokens"):
        finemoe.advise(RoutingTrace.from_topk(ids, np.ones(ids.shape), [0], 5))
