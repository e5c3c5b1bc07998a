"""Scheduling on one link: priorities, chunks, overtaking, stale and merged prefetches; a scripted link instead of a clock."""

import ctypes
import json
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from finemoe.cache.expert_cache import ExpertCache
from finemoe.cache.rules import rule_named
from finemoe.cache.state import RESIDENT
from finemoe.errors import EngineError
from finemoe.policies.base import Prediction
from finemoe.report import Counters
from finemoe.runtime import memory as memory_module
from finemoe.runtime import transitions
from finemoe.runtime.expert_layout import ExpertLayout, Field
from finemoe.runtime.lease import Lease
from finemoe.runtime.link import Link
from finemoe.runtime.memory import ExpertMemory
from finemoe.runtime.pool import SlotPool
from finemoe.runtime.tiers import ExpertStore
from finemoe.runtime.timeline import Timeline
from finemoe.runtime.transitions import HERE
from finemoe.runtime.warm_up import warm_up

LAYERS, EXPERTS, CHUNKS = 5, 4, 4
LAYOUT = ExpertLayout((Field("w", 0, 0, (256,), torch.float32),), 1024)


class ScriptedLink(Link):
    """Writes down every copy; a copy of expert `held` waits until it is let go."""

    chunk_bytes = LAYOUT.nbytes // CHUNKS

    def __init__(self) -> None:
        self.log: list[tuple[int, int]] = []  # (expert's number, bytes)
        self.held: int | None = None
        self.started, self.go_on = threading.Event(), threading.Event()

    def copy(self, sink: int, source: int, size: int, fence: int) -> int:
        number = int(ctypes.c_float.from_address(source).value)
        self.log.append((number, size))
        if number == self.held:
            self.started.set()
            assert self.go_on.wait(10)
        ctypes.memmove(sink, source, size)
        return 0

    def wait(self, mark: int, most_ns: int) -> int:
        return 1


def prediction(layer: int, expert: int, probability: float) -> Prediction:
    """One expert wanted, with that probability."""
    probabilities = np.zeros(EXPERTS, dtype=np.float32)
    probabilities[expert] = probability
    return Prediction(layer, probabilities, np.array([expert]))


class Fixture:
    """Records hold their number, layer·EXPERTS + expert, in every place."""

    def __init__(self, slots: int, asynchronous: bool = True) -> None:
        self.records = ExpertStore([LAYOUT] * LAYERS, [EXPERTS] * LAYERS)
        for layer in range(LAYERS):
            for expert in range(EXPERTS):
                self.records.write(layer, expert, {"w": torch.full((256,), float(layer * EXPERTS + expert))})
        self.cache = ExpertCache(rule_named("lru"), LAYERS, EXPERTS, slots)
        self.link, self.counters = ScriptedLink(), Counters(LAYERS)
        pool = SlotPool(self.records.layouts, slots, torch.device("cpu"))
        timeline = Timeline()
        self.memory = ExpertMemory(self.cache, self.records, pool, self.link, self.counters, timeline, asynchronous)
        self.memory.start()
        self.memory.start_iteration(1)

    def post(self, *requests: tuple[int, int, float], iteration: int = 1) -> None:
        self.memory.post(iteration, [prediction(*request) for request in requests])

    def settle(self) -> None:
        """Wait until the worker has nothing to do."""
        assert self.memory.wait_until_idle(10)

    def order(self) -> list[int]:
        return list(dict.fromkeys(number for number, _ in self.link.log))


@pytest.fixture
def fixture():
    made = []

    def make(*args, **kwargs) -> Fixture:
        made.append(Fixture(*args, **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.link.go_on.set()
        one.memory.close()


def use(memory: ExpertMemory, layer: int, experts: list[int]) -> list[int]:
    lease = memory.demand(layer, np.array(experts, dtype=int))
    numbers = [int(lease.weights(expert)["w"][0]) for expert in experts]
    lease.end()
    return numbers


def test_what_stood_idle_so_far_is_heard_of_and_neither_loaded_nor_measured(fixture):
    """From the second iteration on: a layer of another modality may never run."""
    f = fixture(slots=12, asynchronous=False)
    f.memory.start_iteration(2)
    f.memory.board.has_run[3] = True
    f.post((2, 1, 0.75), (3, 0, 0.5), iteration=2)
    f.settle()
    assert f.order() == [3 * EXPERTS]
    assert f.cache.expected[2].tolist() == [0, 0.75, 0, 0]
    assert [f.memory.demand(layer, np.array([0, 1])).num_recalled for layer in (2, 3)] == [-1, 2]
    f.memory.start_iteration(3)
    assert f.memory.demand(3, np.array([0, 1])).num_recalled == -1


def test_recall_counts_who_was_among_the_first(fixture):
    f = fixture(slots=12, asynchronous=False)
    told = np.array([0.1, 0.4, 0.1, 0.4], dtype=np.float32)  # ranks 3, 1, 4, 2
    ranks = {1: 0, 3: 1, 0: 2, 2: 3}
    for demanded in ([1], [3], [1, 3], [0, 2], [0, 1, 3], [0, 2, 3], [2]):
        f.memory.start_iteration(1)
        f.memory.post(1, [Prediction(2, told, np.array([], dtype=np.int64))])
        recalled = f.memory.demand(2, np.array(demanded)).num_recalled
        assert recalled == sum(ranks[expert] < len(demanded) for expert in demanded)


def test_prefetches_go_by_probability_over_distance(fixture):
    f = fixture(slots=12, asynchronous=False)
    f.memory.demand(0, np.array([], dtype=int))  # layer 0 runs
    f.post((4, 0, 0.9), (1, 1, 0.3), (2, 2, 0.5), (1, 3, 0.2))
    assert f.order() == [1 * 4 + 1, 2 * 4 + 2, 4 * 4 + 0, 1 * 4 + 3]  # 0.3, 0.25, 0.225, 0.2


def test_an_on_demand_load_waits_for_at_most_one_chunk(fixture):
    f = fixture(slots=12)
    f.link.held = 3 * 4 + 1
    f.post((3, 1, 0.9), (3, 2, 0.8), (4, 0, 0.7))
    assert f.link.started.wait(10)
    f.link.started.clear()
    lease = f.memory.demand(0, np.array([2]))  # the first chunk of the prefetch is still on the link
    assert f.link.log == [(13, 256), (2, 1024)]
    f.link.held = None
    f.link.go_on.set()
    assert int(lease.weights(2)["w"][0]) == 2
    f.settle()
    assert f.link.log[2:5] == [(13, 256)] * 3
    assert f.order() == [13, 2, 14, 16]


class DeepLink(ScriptedLink):
    """Two chunks at a time, as on CUDA; notes how many were under way after each copy was issued."""

    chunks_in_flight = 2

    def __init__(self) -> None:
        super().__init__()
        self.under_way: list[int] = []  # marks of copies that nobody has waited for
        self.depths: list[int] = []

    def copy(self, sink: int, source: int, size: int, fence: int) -> int:
        super().copy(sink, source, size, fence)
        self.under_way.append(len(self.log))
        self.depths.append(len(self.under_way))
        return len(self.log)

    def wait(self, mark: int, most_ns: int) -> int:
        self.under_way.remove(mark)
        return 1


def test_chunks_follow_each_other_without_a_gap_and_all_are_awaited(fixture):
    one = fixture(slots=4)
    link = DeepLink()
    one.memory.connect(link)
    one.post((3, 0, 0.5))
    one.settle()
    assert one.cache.state[3, 0] == RESIDENT
    assert link.depths == [1] + [2] * (CHUNKS - 1)
    assert link.under_way == []


def test_loads_follow_each_other_in_a_timeline(fixture, tmp_path):
    """The next expert's first chunk is issued before the last one has arrived, but a track shows one after the other."""
    one = fixture(slots=4)
    one.memory.connect(link := DeepLink())
    one.memory.timeline.start()
    link.held = 2 * EXPERTS
    one.post((2, 0, 0.9), (3, 0, 0.8), (4, 0, 0.7))
    assert link.started.wait(10)
    link.held = None
    link.go_on.set()
    one.settle()
    one.memory.timeline.stop()
    one.memory.timeline.save(tmp_path / "loads.json")
    events = json.loads((tmp_path / "loads.json").read_text())["traceEvents"]
    loads = [(event["ts"], event["ts"] + event["dur"]) for event in events if event["ph"] == "X"]
    assert len(loads) == 3
    assert all(end <= begin + 0.01 for (_, end), (begin, _) in pairwise(loads)), "times are rounded to 0.001 us"


def test_an_expert_whose_prefetch_is_under_way_is_late_and_not_loaded_twice(fixture):
    f = fixture(slots=12)
    f.link.held = 4 + 1
    f.post((1, 1, 0.9))
    assert f.link.started.wait(10)
    lease = f.memory.demand(1, np.array([1]))
    assert (lease.num_hits, lease.num_late, lease.num_misses) == (0, 1, 0)
    f.link.held = None
    f.link.go_on.set()
    assert int(lease.weights(1)["w"][0]) == 5
    assert sum(size for number, size in f.link.log if number == 5) == LAYOUT.nbytes


def test_queued_prefetches_whose_layer_has_come_are_dropped(fixture):
    f = fixture(slots=12)
    f.link.held = 4 * 4 + 3
    f.post((4, 3, 1.0))
    assert f.link.started.wait(10)
    f.post((1, 0, 0.9), (2, 1, 0.8))
    lease = f.memory.demand(1, np.array([0]))
    assert lease.num_misses == 1, "queued but not started is a miss"
    f.link.held = None
    f.link.go_on.set()
    lease.weights(0)
    f.settle()
    assert f.order() == [19, 4, 9]
    assert f.counters.prefetched_bytes == 2 * LAYOUT.nbytes


def test_prefetches_of_an_old_iteration_or_of_resident_experts_are_left_out(fixture):
    f = fixture(slots=12, asynchronous=False)
    f.post((1, 0, 0.5), iteration=0)
    assert f.link.log == []
    f.post((1, 0, 0.5), (1, 0, 0.6))
    f.post((1, 0, 0.7))
    assert f.order() == [4]
    assert f.counters.prefetched_bytes == LAYOUT.nbytes


def test_eviction_hears_every_prediction_also_where_nothing_is_loaded_for_it(fixture):
    f = fixture(slots=12, asynchronous=False)
    use(f.memory, 2, [0])
    f.link.log.clear()
    late, passed, of_none = prediction(3, 0, 0.5), prediction(1, 1, 0.6), prediction(4, 2, 0.7)
    for iteration, one in ((0, late), (1, passed), (None, of_none)):
        f.memory.post(iteration, [one])
        np.testing.assert_array_equal(f.cache.expected[one.layer], one.probabilities)
    assert f.link.log == []


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_a_set_larger_than_the_cache_streams_through(fixture, slots):
    f = fixture(slots=slots)
    for layer in range(LAYERS):
        assert use(f.memory, layer, [0, 1, 2, 3]) == [layer * 4 + expert for expert in range(4)]
    assert use(f.memory, 0, [1, 3]) == [1, 3]
    held = np.count_nonzero(f.cache.state)
    assert held == slots == f.cache.num_admitted - f.cache.num_evicted


def test_a_prefetched_expert_evicted_unused_counts_as_wasted(fixture):
    f = fixture(slots=1, asynchronous=False)
    f.post((4, 2, 0.9))
    assert use(f.memory, 0, [0]) == [0]
    assert (f.counters.prefetched_bytes, f.counters.wasted_bytes, f.counters.demand_bytes) == (1024, 1024, 1024)


def test_reset_empties_the_cache_and_the_next_use_loads_again(fixture):
    f = fixture(slots=3)
    use(f.memory, 0, [0, 1])
    f.memory.demand(1, np.array([0]))  # a forward that breaks off here
    f.memory.reset()
    assert not f.cache.state.any()
    f.memory.start_iteration(2)
    assert use(f.memory, 1, [0, 1, 2]) == [4, 5, 6]
    assert (f.cache.state == RESIDENT).sum() == f.cache.num_admitted - f.cache.num_evicted == f.cache.num_resident


def test_a_failing_link_is_raised_at_once_in_the_caller(fixture):
    f = fixture(slots=3)
    f.link.copy = lambda *_: (_ for _ in ()).throw(RuntimeError("cable cut"))
    f.post((1, 0, 0.9))
    f.memory.worker.join(10)
    with pytest.raises(EngineError, match="prefetch worker failed: cable cut"):
        f.memory.demand(1, np.array([0]))


def test_a_late_prefetch_of_the_running_layer_in_a_full_cache_does_not_hang(fixture):
    """One slot, filled by a prefetch still under way for an expert that is demanded after one that is missing."""
    f = fixture(slots=1)
    f.link.held = 4 + 2
    f.post((1, 2, 0.9))
    assert f.link.started.wait(10)
    lease = f.memory.demand(1, np.array([0, 2]))
    threading.Timer(0.05, f.link.go_on.set).start()
    f.link.held = None
    assert [int(lease.weights(expert)["w"][0]) for expert in (0, 2)] == [4, 6]


def test_slots_are_given_back_only_when_no_copy_is_under_way(fixture):
    f = fixture(slots=2)
    done: list[str] = []
    f.link.finish = lambda: done.append("link")
    give_back, f.memory.pool.close = f.memory.pool.close, lambda: done.append("slots")
    f.memory.close()
    assert done == ["link", "slots"]
    f.memory.pool.close = give_back


@pytest.mark.parametrize(("slots", "hits"), [(1, []), (3, [2, 3])])
def test_a_prefetch_that_lands_while_a_slot_is_looked_for_makes_room_by_itself(fixture, monkeypatch, slots, hits):
    """All slots are needed but that of a prefetch, which arrives just after an expert that is missing found no room."""
    f = fixture(slots=slots)
    use(f.memory, 1, hits)
    f.memory.start_iteration(1)
    f.link.held = 4 + 1  # of the running layer, and not demanded
    f.post((1, 1, 0.9))
    assert f.link.started.wait(10)
    look = Lease._free_a_slot

    def late(lease, expert):
        f.link.held = None
        f.link.go_on.set()
        f.settle()
        look(lease, expert)

    monkeypatch.setattr(Lease, "_free_a_slot", late)
    lease = f.memory.demand(1, np.array([0, *hits]))
    got = [int(lease.weights(expert)["w"][0]) for expert in (0, *hits)]
    assert got == [4 + expert for expert in (0, *hits)]
    assert f.cache.running[1, np.array(hits, dtype=int)].all(), "hits that were handed out must not be victims"


def test_whoever_waits_for_an_expert_that_another_thread_preloads_is_told(fixture):
    f = fixture(slots=2)
    f.link.held = 4
    thread = threading.Thread(target=f.memory.preload, args=([(1, 0)],))
    thread.start()
    assert f.link.started.wait(10)
    lease = f.memory.demand(1, np.array([0]))
    threading.Timer(0.05, f.link.go_on.set).start()
    assert int(lease.weights(0)["w"][0]) == 4
    thread.join(10)


def test_a_load_that_broke_off_in_one_thread_does_not_hold_up_another(fixture, monkeypatch):
    f = fixture(slots=12, asynchronous=False)
    monkeypatch.setattr(f.link, "copy", lambda *_: (_ for _ in ()).throw(OSError("gone")))

    def fail() -> None:
        with pytest.raises(OSError, match="gone"):
            f.post((4, 0, 0.9))

    breaking = threading.Thread(target=fail)
    breaking.start()
    breaking.join()
    monkeypatch.undo()
    f.memory.reset()
    assert not f.cache.state.any()


def test_ids_of_no_expert_are_left_out(fixture):
    f = fixture(slots=2)
    lease = f.memory.demand(1, np.array([-1, 2, EXPERTS, -EXPERTS - 3, 2, 7 * EXPERTS]))
    assert lease.experts == [2]
    lease.end()


def test_another_link_serves_from_when_the_worker_is_idle(fixture):
    f = fixture(slots=12)
    f.link.held = 5
    f.memory.start_iteration(1)
    f.memory.post(1, [prediction(1, 1, 0.5)])
    assert f.link.started.wait(10)
    other = ScriptedLink()
    threading.Timer(0.1, f.link.go_on.set).start()
    f.memory.connect(other)
    assert f.memory.cache.state[1, 1] == RESIDENT
    assert use(f.memory, 2, [0]) == [2 * EXPERTS]
    assert {number for number, _ in f.link.log} == {5}
    assert {number for number, _ in other.log} == {2 * EXPERTS}


def test_spans_are_noted_from_one_start_to_one_end_and_what_is_too_much_is_said(fixture, monkeypatch):
    monkeypatch.setattr(memory_module, "_MOST_SPANS", 2)
    f = fixture(slots=12)
    timeline = f.memory.timeline
    for wanted in ([0], [1, 2, 3]):  # the second start forgets what the first has noted
        timeline.start()
        f.memory.start_iteration(1)
        f.memory.post(1, [prediction(1, expert, 0.5) for expert in wanted])
        f.settle()
    with pytest.warns(UserWarning, match="lacks link's last 1 loads"):
        timeline.stop()
    assert [span[1] for span in timeline._spans] == ["prefetch 1.1", "prefetch 1.2"]


@pytest.mark.skipif(not Path("/proc/self/timerslack_ns").exists(), reason="the system tells nobody its timer slack")
def test_the_calling_thread_is_woken_as_it_was_before(fixture):
    def slack_ns() -> int:
        return int(Path(f"/proc/{threading.get_native_id()}/timerslack_ns").read_text())

    before_ns = slack_ns()
    warm_up.__wrapped__()
    f = fixture(slots=2)
    assert use(f.memory, 1, [0, 1]) == [EXPERTS, EXPERTS + 1]
    assert slack_ns() == before_ns


def test_an_expert_that_gave_up_its_slot_and_came_back_stays(fixture):
    """Of four experts in three slots the last one, which was there, makes room for the first and is loaded again: prefetches that
    come meanwhile may have the slots of those that were used, but not the one that is being read."""
    one = fixture(slots=3)
    memory = one.memory
    assert use(memory, 0, [1, 2, 3]) == [1, 2, 3]
    lease = memory.demand(0, np.arange(4))
    read = [lease.weights(expert)["w"] for expert in range(4)]
    assert one.link.log.count((3, LAYOUT.nbytes)) == 2
    one.post(*((layer, expert, 0.9) for layer in (1, 2, 3) for expert in range(EXPERTS)))
    one.settle()
    assert len(one.order()) > EXPERTS  # some came
    assert read[3].unique().tolist() == [3.0]
    assert one.cache.state[0, 3] == RESIDENT
    lease.end()


def test_an_expert_whose_given_up_slot_nobody_took_is_still_there(fixture):
    one = fixture(slots=3)
    memory = one.memory
    use(memory, 0, [1, 2, 3])
    lease = memory.demand(0, np.array([1, 2, 3]))
    before = one.cache.num_held, one.cache.num_resident, len(one.link.log)
    transitions.release(memory.board.places, 0, np.array([3]))
    assert transitions.load_late(memory.board.places, memory.flat(0, 3)) == (one.cache.slot_of[0, 3], HERE)
    assert one.cache.running[0, 3]
    assert (one.cache.num_held, one.cache.num_resident, len(one.link.log)) == before
    lease._missing.append(3)
    assert lease.weights(3)["w"].unique().tolist() == [3.0]
    assert not lease._missing
    assert sorted(one.cache.arrays.held.tolist()) == [1, 2, 3]
    lease.end()
