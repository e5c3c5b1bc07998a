"""Virtual time: the compiled clockwork against a naive simulator, against formulas, and its invariants."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finemoe.cache.placement import owners_of
from finemoe.cache.rules import RULES, rule_named
from finemoe.simulation.clockwork import Clockwork
from finemoe.simulation.future import FutureUses
from finemoe.simulation.instant import InstantDevice
from finemoe.simulation.kernel_inputs import Durations, Events
from finemoe.simulation.machine import AFTER_LAYER, AT_GATE, BESIDE
from tests.simulation import naive_timed

LAYERS, EXPERTS = 3, 6
LOAD_S, CHUNK_S = 1.0, 0.3


def random_run(seed: int, num_iterations: int = 10, most: int = 2):
    """Events and durations as the clockwork takes them, and as the naive simulator does."""
    rng = np.random.default_rng(seed)
    num_events = num_iterations * LAYERS
    sets = [np.sort(rng.permutation(EXPERTS)[: rng.integers(1, most + 1)]) for _ in range(num_events)]
    begins, demanded = np.cumsum([0, *map(len, sets)]), np.concatenate(sets)
    layers = np.tile(np.arange(LAYERS), num_iterations)
    answers = [_answer(rng, moment) for moment in range(2 * num_events)]
    rows = [row for answer in answers for _, row, _ in answer]
    prefetches = [_by_priority(answer, moment) for moment, answer in enumerate(answers)]
    counts = np.array([len(answer) for answer in answers])
    events = Events(
        layers=layers,
        is_start=layers == 0,
        begins=begins,
        demanded=demanded,
        next_use=FutureUses(LAYERS, EXPERTS).before(begins, demanded, 0),
        update_begins=np.concatenate([[0], np.cumsum(counts)]),
        update_layers=np.array([t for answer in answers for t, _, _ in answer], dtype=np.int64),
        update_rows=np.arange(len(rows)),
        rows=np.array(rows, dtype=np.float32).reshape(-1, EXPERTS),
        prefetch_begins=np.concatenate([[0], np.cumsum([len(one) for one in prefetches])]),
        prefetches=np.concatenate(prefetches),
    )
    durations = Durations(
        before=rng.uniform(0.05, 1.5, num_events),
        expert=rng.uniform(0.05, 0.5, len(demanded)),
        after=rng.uniform(0, 0.3, num_events),
        search=rng.uniform(0, 0.8, 2 * num_events),
        earliest=np.where(layers == 0, rng.uniform(0, 25, num_events), 0.0),
    )
    plain_events = [
        {"layer": int(layers[e]), "is_start": layers[e] == 0, "demanded": sets[e].tolist()}
        | {"before": answers[2 * e] if layers[e] == 0 else [], "after": answers[2 * e + 1]}
        for e in range(num_events)
    ]
    plain_durations = [
        {
            "before": durations.before[e],
            "expert": dict(zip(sets[e].tolist(), durations.expert[begins[e] : begins[e + 1]].tolist(), strict=True)),
            "after": durations.after[e],
            "search_start": durations.search[2 * e],
            "search_gate": durations.search[2 * e + 1],
            "earliest": durations.earliest[e],
        }
        for e in range(num_events)
    ]
    return events, durations, plain_events, plain_durations


def _answer(rng: np.random.Generator, moment: int) -> list[tuple[int, np.ndarray, list[int]]]:
    """Predictions of later layers: none before events that start no iteration."""
    layer = moment // 2 % LAYERS if moment % 2 else -1
    if (moment % 2 == 0 and moment // 2 % LAYERS) or layer + 1 >= LAYERS or rng.random() < 0.3:
        return []
    targets = rng.permutation(np.arange(layer + 1, LAYERS))[: rng.integers(1, 3)]
    rows = rng.dirichlet(np.ones(EXPERTS), size=len(targets)).astype(np.float32)
    return [(int(t), row, np.sort(rng.permutation(EXPERTS)[:2]).tolist()) for t, row in zip(targets, rows, strict=True)]


def _by_priority(answer: list[tuple[int, np.ndarray, list[int]]], moment: int) -> np.ndarray:
    """Flat ids by p / (layer - current layer), as `by_moment` orders them."""
    layer = moment // 2 % LAYERS if moment % 2 else -1
    asked = [(-float(row[e]) / (target - layer), target * EXPERTS + e) for target, row, wanted in answer for e in wanted]
    return np.array([flat for _, flat in sorted(asked)], dtype=np.int64)


@pytest.mark.parametrize("rule", sorted(RULES))
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_devices=st.integers(1, 3),
    spare=st.integers(0, 6),
    waits=st.sampled_from([BESIDE, AT_GATE, AFTER_LAYER]),
    wake_s=st.sampled_from([0.0, 0.3]),
    prefetch_s=st.sampled_from([LOAD_S, 1.3 * LOAD_S]),
    hand_over_s=st.sampled_from([0.0, 0.4, 2.0]),
    hits_first=st.booleans(),
    resume_s=st.sampled_from([0.0, 0.2]),
)
def test_agrees_with_a_naive_simulator(
    rule, seed, num_devices, spare, waits, wake_s, prefetch_s, hand_over_s, hits_first, resume_s
):
    events, durations, plain_events, plain_durations = random_run(seed, most=3)
    owners, slots = owners_of([EXPERTS] * LAYERS, num_devices), 4 + spare  # a layer's set and a transfer always fit
    clockwork = Clockwork(
        rule_named(rule, is_replay=True), owners, num_devices, slots, LOAD_S, CHUNK_S, waits, wake_s, prefetch_s, hand_over_s,
        hits_first, resume_s,
    )  # fmt: skip
    if rule == "belady":
        first = FutureUses(LAYERS, EXPERTS)
        first.before(events.begins, events.demanded, 0)
        clockwork.foresee(first.first_uses)
    found = clockwork.run(events, durations)
    expected = naive_timed.replay(
        plain_events, plain_durations, rule, lambda layer, e: int(owners[layer, e]), LAYERS, EXPERTS, slots, num_devices,
        LOAD_S, CHUNK_S, waits, wake_s, prefetch_s, hand_over_s, hits_first, resume_s,
    )  # fmt: skip
    assert found.counts.tolist() == [list(one[:5]) for one in expected]
    np.testing.assert_allclose(found.starts, [one[5] for one in expected], atol=1e-7)
    np.testing.assert_allclose(found.ends, [one[6] for one in expected], atol=1e-7)
    if num_devices == 1:
        np.testing.assert_allclose(found.stalls, [one[7] for one in expected], atol=1e-7)


def plain(seed: int = 0, **changes):
    events, durations, _, _ = random_run(seed, most=4)
    zeros = {"search": np.zeros_like(durations.search), "earliest": np.zeros_like(durations.earliest)}
    return events, durations._replace(**{**zeros, **changes})


@pytest.mark.parametrize("rule", ["lru", "lfu", "finemoe"])
@pytest.mark.parametrize("slots", [4, 5, 9, 18])  # a layer's set fits
def test_an_instant_link_is_the_untimed_replay(rule, slots):
    """With loads that take no time (and no work of the policy's) hits and bytes are those of an instant replay."""
    events, durations = plain(3)
    timed = Clockwork(rule_named(rule), owners_of([EXPERTS] * LAYERS, 1), 1, slots, 0.0, CHUNK_S, AT_GATE).run(events, durations)
    untimed = InstantDevice(rule_named(rule), LAYERS, EXPERTS, slots).run(events)
    assert timed.counts[:, 1].sum() == 0
    np.testing.assert_array_equal(timed.counts[:, [0, 2, 3, 4]], untimed)
    np.testing.assert_allclose(timed.stalls, 0.0, atol=1e-9)


def test_everything_resident_takes_what_computing_takes():
    events, durations = plain(1)
    clockwork = Clockwork(rule_named("lru"), owners_of([EXPERTS] * LAYERS, 1), 1, LAYERS * EXPERTS, LOAD_S, CHUNK_S)
    clockwork.hold(np.arange(LAYERS * EXPERTS))
    outcome = clockwork.run(events, durations)
    work = durations.before.sum() + durations.expert.sum() + durations.after.sum()
    assert outcome.ends[-1] == pytest.approx(work)
    assert outcome.counts[:, 1:].sum() == 0


def test_one_slot_and_no_prediction_stalls_for_every_load():
    """Nothing is reused within a layer, and nothing overlaps with one slot: time = work + loads x load_s."""
    events, durations = plain(2)
    none = np.zeros_like(events.prefetch_begins)
    events = events._replace(prefetch_begins=none, prefetches=np.zeros(0, dtype=np.int64))
    outcome = Clockwork(rule_named("lru"), owners_of([EXPERTS] * LAYERS, 1), 1, 1, LOAD_S, CHUNK_S).run(events, durations)
    loads = outcome.counts[:, 2].sum()
    work = durations.before.sum() + durations.expert.sum() + durations.after.sum()
    assert outcome.ends[-1] == pytest.approx(work + loads * LOAD_S)
    assert outcome.stalls.sum() == pytest.approx(loads * LOAD_S)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), num_devices=st.integers(1, 3), slots=st.integers(1, 8), waits=st.integers(0, 2))
def test_time_and_loads_are_conserved(seed, num_devices, slots, waits):
    """Also where a layer's set exceeds the cache: it ends, time goes forward, every load has an expert that left or is held."""
    events, durations, _, _ = random_run(seed, most=6)
    clockwork = Clockwork(
        rule_named("lfu"), owners_of([EXPERTS] * LAYERS, num_devices), num_devices, slots, LOAD_S, CHUNK_S, waits
    )
    outcome = clockwork.run(events, durations)
    assert (outcome.ends >= outcome.starts).all()
    assert (outcome.starts[1:] >= outcome.ends[:-1] - 1e-9).all()
    assert (outcome.stalls >= -1e-9).all()
    ahead, wasted = outcome.counts[:, 3].sum(), outcome.counts[:, 4].sum()
    assert ahead == clockwork.num_useful + wasted + clockwork.num_unused
    assert (outcome.counts[:, :2].sum(axis=1) <= np.diff(events.begins)).all()


def test_a_demanded_load_waits_for_one_chunk_at_most():
    """A prefetch of layer 2 is 0.4 s into its transfer (one chunk and a third) when layer 0 misses an expert."""
    row = np.full((1, EXPERTS), 1 / EXPERTS, dtype=np.float32)
    events = Events(
        layers=np.arange(3), is_start=np.arange(3) == 0, begins=np.arange(4), demanded=np.arange(3), next_use=np.zeros(3, int),
        update_begins=np.array([0, 1, 1, 1, 1, 1, 1]), update_layers=np.array([2]), update_rows=np.array([0]), rows=row,
        prefetch_begins=np.array([0, 1, 1, 1, 1, 1, 1]), prefetches=np.array([2 * EXPERTS + 2]),
    )  # fmt: skip
    durations = Durations(np.full(3, 0.4), np.full(3, 0.1), np.zeros(3), np.zeros(6), np.zeros(3))
    outcome = Clockwork(rule_named("lru"), owners_of([EXPERTS] * 3, 1), 1, 9, LOAD_S, CHUNK_S).run(events, durations)
    assert outcome.stalls[0] == pytest.approx((0.6 - 0.4) + LOAD_S)
    assert outcome.counts[2].tolist() == [1, 0, 0, 0, 0]  # the rest of it, 0.4 s, was moved meanwhile


def test_a_late_expert_is_loaded_once_also_where_others_of_its_set_find_no_slot():
    """Two slots: expert 5 of layer 1 is on its way into one when 1, 2 and 5 are demanded; 2 takes the slot of 1 in its turn."""
    row = np.full((1, EXPERTS), 1 / EXPERTS, dtype=np.float32)
    events = Events(
        layers=np.arange(3), is_start=np.arange(3) == 0, begins=np.array([0, 1, 4, 5]), demanded=np.array([0, 1, 2, 5, 0]),
        next_use=np.zeros(5, int), update_begins=np.array([0, 1, 1, 1, 1, 1, 1]), update_layers=np.array([1]),
        update_rows=np.array([0]), rows=row, prefetch_begins=np.array([0, 1, 1, 1, 1, 1, 1]), prefetches=np.array([EXPERTS + 5]),
    )  # fmt: skip
    durations = Durations(np.array([0.4, 0.1, 0.1]), np.full(5, 0.1), np.zeros(3), np.zeros(6), np.zeros(3))
    outcome = Clockwork(rule_named("lru"), owners_of([EXPERTS] * 3, 1), 1, 2, LOAD_S, CHUNK_S).run(events, durations)
    assert outcome.counts[1].tolist() == [0, 1, 2, 0, 0]


def one_layer_after_another(slots: int, demanded: list[list[int]], expert_s: list[float], **options):
    """Layer 0 of successive iterations demands these sets, nobody predicts, and a gate speaks every 0.1 s."""
    count = len(demanded)
    none = np.zeros(2 * count + 1, dtype=np.int64)
    events = Events(
        layers=np.zeros(count, int), is_start=np.ones(count, bool), begins=np.cumsum([0, *map(len, demanded)]),
        demanded=np.concatenate(demanded), next_use=np.zeros(len(expert_s), int), update_begins=none,
        update_layers=np.zeros(0, int), update_rows=np.zeros(0, int), rows=np.zeros((0, EXPERTS), np.float32),
        prefetch_begins=none, prefetches=np.zeros(0, int),
    )  # fmt: skip
    search_s = options.pop("search_s", 0.0)
    durations = Durations(
        np.full(count, 0.1), np.array(expert_s), np.zeros(count), np.tile([0.0, search_s], count), np.zeros(count)
    )
    clockwork = Clockwork(rule_named("lru"), owners_of([EXPERTS], 1), 1, slots, LOAD_S, CHUNK_S, **options)
    return clockwork.run(events, durations)


@pytest.mark.parametrize(
    ("hits_first", "end_s"),
    [
        (False, LOAD_S + 0.9 + 0.3 + 0.2),  # the load of 1 is waited for; that of 5 is over when its turn comes
        (True, 2 * LOAD_S + 0.2),  # 3 is computed while 1 is loaded, and 1 while 5 is
    ],
)
def test_a_hit_is_computed_while_misses_are_loaded(hits_first, end_s):
    """3 is there; 1 and 5 are loaded one after the other; they take 0.9, 0.3 and 0.2 s to compute."""
    outcome = one_layer_after_another(6, [[3], [1, 3, 5]], [0.5, 0.9, 0.3, 0.2], hits_first=hits_first)
    begin = outcome.starts[1]
    assert outcome.ends[1] - begin - 0.1 == pytest.approx(end_s)
    assert outcome.counts[1].tolist() == [1, 0, 2, 0, 0]
    assert outcome.stalls[1] == pytest.approx(end_s - 1.4)


def test_experts_that_take_turns_are_computed_in_ascending_order():
    """Two slots for 1, 3 and 5: 5 takes that of 1 when 1 has been computed, hits first or not."""
    both = [one_layer_after_another(2, [[3], [1, 3, 5]], [0.5, 0.9, 0.3, 0.2], hits_first=one).ends for one in (False, True)]
    assert both[0].tolist() == both[1].tolist()


@pytest.mark.parametrize(
    ("hand_over_s", "end_s"),
    [
        (0.0, 0.1 + LOAD_S + 0.4),  # the thread searches
        (0.2, 0.1 + LOAD_S + 0.4),  # as short as handing it over
        (0.3, 0.1 + LOAD_S + 0.4),  # at once, while the expert is loaded
    ],
)
def test_a_search_beside_a_load_costs_nothing(hand_over_s, end_s):
    outcome = one_layer_after_another(6, [[3], [3]], [0.4, 0.4], search_s=0.2, hand_over_s=hand_over_s)
    assert outcome.ends[0] == pytest.approx(end_s)
    assert outcome.ends[1] - outcome.starts[1] == pytest.approx(0.1 + (0.2 if hand_over_s > 0.2 else 0.0) + 0.4)
    assert outcome.stalls.tolist() == pytest.approx([LOAD_S - (0.2 if hand_over_s > 0.2 else 0.0), 0.0])


def test_a_search_at_once_waits_for_its_turn():
    """A start's search of 2 s is not short; the gate's, which is, comes behind it in the thread."""
    count = 1
    events = Events(
        layers=np.zeros(count, int), is_start=np.ones(count, bool), begins=np.array([0, 1]), demanded=np.array([3]),
        next_use=np.zeros(1, int), update_begins=np.zeros(3, int), update_layers=np.zeros(0, int),
        update_rows=np.zeros(0, int), rows=np.zeros((0, EXPERTS), np.float32), prefetch_begins=np.zeros(3, int),
        prefetches=np.zeros(0, int),
    )  # fmt: skip
    for start_s, end_s in ((2.0, 0.1 + LOAD_S + 0.4), (0.2, 0.2 + 0.1 + LOAD_S + 0.4)):
        durations = Durations(np.array([0.1]), np.array([0.4]), np.zeros(1), np.array([start_s, 0.2]), np.zeros(1))
        clockwork = Clockwork(rule_named("lru"), owners_of([EXPERTS], 1), 1, 6, LOAD_S, CHUNK_S, hand_over_s=0.3)
        assert clockwork.run(events, durations).ends[0] == pytest.approx(end_s)
