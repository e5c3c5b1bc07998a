from dataclasses import fields

import numpy as np
import pytest
import yaml

from finemoe.advice import this_machine
from finemoe.advice.machine_rates import RECORD_BYTES, chunk_overhead, line_through, search_rate
from finemoe.advice.machine_steps import SHAPES, hand_over_s, solved
from finemoe.advice.this_machine import MeasuredTestbed, measure_testbed, write_testbed
from finemoe.errors import FinemoeError
from finemoe.simulation.testbed import Testbed

MAY_BE_ZERO = {"link_latency_s", "chunk_overhead_s", "interconnect_latency_s", "search_overhead_s", "layer_overhead_s"}
MAY_BE_ZERO |= {"expert_overhead_s"}  # differences of times, on a machine that does other work


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("here") / "here.yaml"
    return path, write_testbed(path, seconds=0.1, dtype="float32")


def test_what_is_written_is_what_is_loaded(written):
    path, testbed = written
    assert Testbed.load(path) == testbed
    assert testbed.devices == 1
    assert testbed.hits_first == 1


def test_every_constant_is_in_range_and_has_a_source(written):
    path, testbed = written
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    names = {field.name for field in fields(Testbed)} - {"title"}
    assert set(content) - {"title"} == names
    for name in names:
        assert getattr(testbed, name) > 0 or name in MAY_BE_ZERO
        assert content[name]["source"].strip()
    measured = {name for name in names if content[name]["source"].startswith("measured: ")}
    assert measured == names - {"devices", "host_bytes_per_s", "interconnect_bytes_per_s", "interconnect_latency_s", "hits_first"}
    assert "not measured" in content["interconnect_bytes_per_s"]["source"]
    assert all("PyTorch" in content[name]["source"] for name in measured)


def test_a_file_has_one_constant_a_line(written):
    path, _ = written
    assert len(path.read_text(encoding="utf-8").splitlines()) == 1 + len(fields(Testbed))


def test_measuring_prints_nothing(capfd):
    measure_testbed(seconds=0.1, dtype="float32")
    assert capfd.readouterr() == ("", "")


def test_a_line_is_that_of_least_squares():
    sizes, times_s = np.array([1.0, 2.0, 4.0, 7.0]), np.array([3.1, 4.9, 9.2, 15.1])
    slope = np.cov(sizes, times_s)[0, 1] / np.var(sizes, ddof=1)
    rate, start_s = line_through(sizes, times_s)
    assert rate == pytest.approx(1 / slope)
    assert start_s == pytest.approx(times_s.mean() - slope * sizes.mean())


def test_two_sizes_give_the_line_through_both():
    rate, start_s = line_through([1e6, 33e6], [5e-6 + 1e6 / 2e10, 5e-6 + 33e6 / 2e10])
    assert rate == pytest.approx(2e10)
    assert start_s == pytest.approx(5e-6)


def test_a_line_never_begins_before_zero():
    assert line_through([1.0, 2.0], [0.5, 2.0])[1] == 0.0


def test_what_takes_no_longer_has_no_rate():
    with pytest.raises(FinemoeError, match="took no longer"):
        line_through([1.0, 2.0], [2.0, 1.0])


def test_a_step_is_taken_apart():
    once_s, layer_s, expert_s = 7e-4, 3e-4, 4e-5
    steps_s = [once_s + layers * (layer_s + top_k * expert_s) for layers, top_k in SHAPES]
    assert solved(SHAPES, steps_s) == pytest.approx((once_s, layer_s, expert_s))


def test_no_part_of_a_step_is_negative():
    assert min(solved(SHAPES, [4.0, 3.0, 12.0, 11.0])) == 0.0


def test_a_chunk_takes_what_neither_bytes_nor_latency_explain():
    bytes_per_s, latency_s, each_s, chunks = 1e9, 2e-5, 3e-5, RECORD_BYTES / (4 << 20)
    chunked_s = RECORD_BYTES / bytes_per_s + chunks * (latency_s + each_s)
    assert chunk_overhead(chunked_s, bytes_per_s, latency_s) == pytest.approx(each_s)
    assert chunk_overhead(0.0, bytes_per_s, latency_s) == 0.0


def test_searches_and_trips_take_time():
    assert search_rate(20) > 0
    assert hand_over_s() > 0


def test_six_digits_are_written(tmp_path):
    testbed = Testbed("one, 'in words': α", 1, 8e9, 1.23456789e12, 2e11, 1e10, 1.23456789e-5, 1e10, 1e12, 0.0, 0, 0, 1e10, 0)
    sources = dict.fromkeys((field.name for field in fields(Testbed)), "said: {so}")
    found = MeasuredTestbed(testbed, sources).save(tmp_path / "some.yaml")
    assert found.title == testbed.title
    assert (found.flops_per_s, found.link_latency_s) == (1.23457e12, 1.23457e-5)


@pytest.mark.parametrize(("told", "said"), [({"seconds": 0}, "seconds is 0"), ({"dtype": "float7"}, "float7")])
def test_what_cannot_be_meant_is_refused(told, said):
    with pytest.raises(FinemoeError, match=said):
        measure_testbed(**told)


def test_what_cannot_be_measured_is_one_line(monkeypatch):
    def fails(*_):
        raise RuntimeError("CUDA out of memory.\nTried to allocate 1 GiB")

    monkeypatch.setattr(this_machine, "read_rate", fails)
    with pytest.raises(FinemoeError) as caught:
        measure_testbed(seconds=0.1)
    assert str(caught.value).count("\n") == 0
    assert "CUDA out of memory." in str(caught.value)


def test_a_testbed_is_a_yaml_file(tmp_path):
    with pytest.raises(FinemoeError, match=r"\.yaml"):
        write_testbed(tmp_path / "here.txt")
    with pytest.raises(FinemoeError, match="cannot be written"):
        write_testbed("/proc/here.yaml")
