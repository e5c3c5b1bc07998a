"""Several pools stand in for several devices: experts round-robin, outputs unchanged, and a long run under random delays."""

import ctypes
import gc
import random
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

import finemoe
from finemoe.cache.placement import owners_of
from finemoe.models.layers import find_moe_layers
from finemoe.runtime import attachment, devices
from finemoe.runtime.link import Link
from finemoe.traces import RoutingTrace
from tests.runtime import families
from tests.runtime.late_driver import LateDriver
from tests.runtime.models import FAMILIES, build, padded_batch

pytestmark = pytest.mark.timeout(300)  # thousands of steps

GENERATION = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


def test_round_robin_over_layers_of_different_widths():
    owners = owners_of([3, 5], 2)
    assert owners[0, :3].tolist() == [0, 1, 0]
    assert owners[1].tolist() == [1, 0, 1, 0, 1]


@pytest.mark.parametrize("num_devices", [2, 4])
@pytest.mark.parametrize("policy", ["finemoe", "on-demand"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bit_equal_on_several_pools(family, policy, num_devices):
    model, batch = build(family), padded_batch()
    expected = model.generate(**batch, **GENERATION)
    smallest = num_devices / sum(layer.num_experts for layer in find_moe_layers(model))
    for share in (smallest, 0.4, 1.0):
        with finemoe.offload(model, share, policy, devices=num_devices) as engine:
            assert torch.equal(model.generate(**batch, **GENERATION), expected)
            caches = [memory.cache for memory in engine.memories.memories]
            assert len(caches) == num_devices
            for index, cache in enumerate(caches):
                held = np.argwhere(cache.state)
                assert all(engine.memories.owner(layer, expert) == index for layer, expert in held)
                assert len(held) == cache.num_admitted - cache.num_evicted <= cache.num_slots
            report = engine.report()
            loaded = report.demand_bytes + report.prefetched_bytes
            assert loaded == sum(cache.num_admitted for cache in caches) * engine.records.record_bytes


def test_bytes_are_per_device_and_shares_over_all():
    model = build("mixtral")
    with finemoe.offload(model, 0.5, devices=2) as engine:
        assert [memory.cache.num_slots for memory in engine.memories.memories] == [8, 8]
        record_bytes = engine.records.record_bytes
    with finemoe.offload(model, 3 * record_bytes, devices=2) as engine:
        assert [memory.cache.num_slots for memory in engine.memories.memories] == [3, 3]


class DelayedLink(Link):
    """Some copies take a while."""

    chunk_bytes = 1024
    random = random.Random(0)

    def copy(self, sink, source, size, fence):
        if self.random.random() < 0.02:
            time.sleep(self.random.random() * 1e-3)
        ctypes.memmove(sink, source, size)
        return 0

    def wait(self, mark, most_ns):
        return 1


def random_history(layers: int, experts: int) -> RoutingTrace:
    rng = np.random.default_rng(0)
    ids = np.stack([[rng.permutation(experts)[:2] for _ in range(layers)] for _ in range(200)])
    return RoutingTrace.from_topk(ids, rng.dirichlet(np.ones(2), size=(200, layers)), [0, 100, 200], experts)


def wait_for(is_so: Callable[[], bool]) -> None:
    """Until it is so, and no longer than ten seconds."""
    end_s = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def late_link() -> Link:
    """A CUDA link over a driver whose copies are really under way for a while, on threads of its own."""
    return LateDriver(seed=0, most_s=2e-4).link()


@pytest.mark.slow
@pytest.mark.parametrize("make_link", [DelayedLink, late_link])
def test_ten_thousand_steps_of_random_routing_under_random_delays(make_link, monkeypatch):
    """Every layer's output equals the reference, every byte is accounted for, memory and threads do not grow."""
    monkeypatch.setattr(attachment, "make_link", lambda device, description: make_link())
    model, reference = build("mixtral"), build("mixtral")
    history, generator, draw = random_history(4, 8), torch.Generator().manual_seed(0), random.Random(1)
    threads, num_objects = set(threading.enumerate()), []  # those of earlier tests may end meanwhile
    with torch.no_grad():
        for _ in range(20):
            policy = draw.choice(["finemoe", "on-demand"])
            options = {"devices": 4, "history": history if policy == "finemoe" else None}
            with finemoe.offload(model, draw.uniform(0.125, 0.9), policy, **options) as engine:
                require_equal_steps(500, model, reference, generator, draw)
                require_balanced_books(engine)
            del engine
            gc.collect()
            wait_for(lambda: threads.issuperset(threading.enumerate()))  # a driver's ends when nobody has the driver
            num_objects.append(len(gc.get_objects()))
    assert num_objects[-1] - num_objects[5] < 200


def require_equal_steps(num_steps: int, model, reference, generator: torch.Generator, draw: random.Random) -> None:
    """Random rows through every layer come out as the reference's do."""
    model_layers, reference_layers = find_moe_layers(model), find_moe_layers(reference)
    for _ in range(num_steps):
        rows = draw.choice([1, 1, 1, 2, 5])
        for mine, theirs in zip(model_layers, reference_layers, strict=True):
            hidden = torch.randn(rows, 32, generator=generator)
            picks = torch.stack([torch.randperm(8, generator=generator)[:2] for _ in range(rows)])
            weights = torch.rand(rows, 2, generator=generator)
            expected = theirs.experts(hidden, picks, weights)
            assert torch.equal(mine.experts(hidden, picks, weights), expected)


def require_balanced_books(engine) -> None:
    """What was moved and asked for is what the caches hold and the report says."""
    report = engine.report()
    caches = [memory.cache for memory in engine.memories.memories]
    for memory in engine.memories.memories:
        assert memory.wait_until_idle(10)
        assert memory.cache.num_admitted - memory.cache.num_evicted == np.count_nonzero(memory.cache.state)
    moved = sum(cache.num_admitted for cache in caches) * engine.records.record_bytes
    assert moved >= report.demand_bytes + report.prefetched_bytes > 0
    assert report.accesses == report.hits + report.late + report.misses


def test_an_expert_is_copied_to_the_home_device_once_however_often_its_parameters_are_read(monkeypatch):
    """The model's own forward, which serves where no lean loop is proved, asks for each parameter apart."""
    model = families.build("gpt_oss")
    batch = families.batch(model)
    brought: list[int] = []
    copy = devices.to_home
    monkeypatch.setattr(devices, "to_home", lambda weights, *places: (brought.append(len(weights)), copy(weights, *places))[1])
    with finemoe.offload(model, 0.5, "on-demand", devices=2) as engine, torch.no_grad():
        model(**batch)
        report = engine.report()
        assert len(brought) == report.accesses + report.padding_accesses
