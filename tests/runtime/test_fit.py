"""Expert memory that does not fit is refused before experts are read, with the sizes that do."""

import re

import pytest

import finemoe
from finemoe.errors import FinemoeError
from finemoe.runtime import fit
from finemoe.runtime.loading import load
from finemoe.units import parse_bytes
from tests.runtime.models import build


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("fit")
    build("mixtral").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def expert_bytes(folder):
    _, engine = load(folder, 1.0, "on-demand")
    with engine:
        return engine.records.record_bytes


def test_too_much_says_the_smallest_and_the_largest(folder, expert_bytes, monkeypatch):
    _, engine = load(folder, 1.0, "on-demand")
    with engine:
        num_experts = sum(engine.memories.counts)
    num_bytes = num_experts * expert_bytes + 5 * expert_bytes  # the experts in host memory, and five of them once more
    monkeypatch.setattr(fit, "free_bytes", lambda device: num_bytes)
    with pytest.raises(FinemoeError, match=r"^expert_memory is 1\.0, which takes .* on cpu; from \S+, which holds one") as caught:
        load(folder, 1.0, "on-demand")
    least, most = re.search(r"from (\S+), .* to (\S+) fits here", str(caught.value)).groups()
    for size, slots in ((least, 1), (most, None)):
        _, engine = load(folder, size, "on-demand")
        with engine:
            assert slots in (None, engine.memories.memories[0].cache.num_slots)
            assert engine.expert_memory_bytes <= 5 * expert_bytes
    assert abs(parse_bytes(most) - 5 * expert_bytes) <= 0.01 * 5 * expert_bytes


def test_too_little_says_both_too(folder, expert_bytes):
    with pytest.raises(FinemoeError, match=rf"one expert takes {expert_bytes}; .*; at most \S+ fits here"):
        load(folder, expert_bytes - 1, "on-demand")


def test_a_machine_that_reports_nothing_refuses_nothing(folder, monkeypatch):
    monkeypatch.setattr(fit, "free_bytes", lambda device: None)
    _, engine = finemoe.load(folder, 1.0, "on-demand")
    engine.close()


def test_a_machine_without_room_for_the_experts_says_how_to_keep_less_there(folder, expert_bytes, monkeypatch):
    monkeypatch.setattr(fit, "free_bytes", lambda device: 3 * expert_bytes)
    with pytest.raises(FinemoeError, match=r"^the experts take .* that are free on cpu, .*; set host_memory to keep less there$"):
        load(folder, 0.5, "on-demand")
    _, engine = load(folder, 2 * expert_bytes, "on-demand", host_memory=expert_bytes)
    with engine:
        assert engine.memories.memories[0].cache.num_slots == 2
