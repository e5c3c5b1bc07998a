"""finemoe-plus' own options: what a prefetch must gain, and what earlier runs learned."""

import numpy as np
import pytest
import torch

import finemoe
from finemoe.errors import FinemoeError
from finemoe.maps.forecaster import Forecaster
from finemoe.policies import make_policy
from finemoe.simulation.replay import replay_setup
from finemoe.traces import RoutingTrace
from tests.runtime.models import build, padded_batch
from tests.simulation.golden import FILE

TRACE = RoutingTrace.load(FILE)
PAST, SERVED = TRACE.split("history"), TRACE.split("served")


def counts(**options) -> tuple[int, ...]:
    report = finemoe.replay(SERVED, "finemoe-plus", 0.4, **options)
    return report.hits, report.prefetched_bytes, report.wasted_bytes


def test_a_run_goes_on_where_the_last_one_ended(tmp_path):
    file = tmp_path / "learned"
    finemoe.replay(PAST, "finemoe-plus", 0.4, warm=file)
    learned = Forecaster.load(file).state()
    assert counts(warm=file) != counts()  # which learns from nothing
    again = Forecaster.load(file).state()
    for name in ("inputs", "weights", "bias", "vote_gains"):
        assert not np.array_equal(learned[name], again[name])  # it went on learning
    # No iteration has more rows than are learned from, so that each was heard once, in this run or in that.
    assert again["num_heard"].tolist() == [TRACE.num_rows] * TRACE.num_layers


def test_what_a_forecaster_learned_is_a_history(tmp_path):
    setup = replay_setup(SERVED, PAST)
    policy = make_policy("finemoe-plus", setup, is_replay=True)
    policy.forecaster.save(tmp_path / "learned")
    assert counts(history=Forecaster.load(tmp_path / "learned")) == counts(history=PAST)


def test_the_live_engine_saves_what_it_learned(tmp_path):
    file, model = tmp_path / "learned", build("qwen2_moe")
    for _ in range(2):
        with torch.no_grad(), finemoe.offload(model, 0.5, "finemoe-plus", warm=file, asynchronous=False):
            model.generate(**padded_batch(), max_new_tokens=4, min_new_tokens=4, do_sample=False)
            if file.exists():
                before = Forecaster.load(file).state()["num_heard"].sum()
    assert Forecaster.load(file).state()["num_heard"].sum() == 2 * before > 0


def test_another_models_file_is_refused(tmp_path):
    Forecaster(4, 6, 2, model="another-0123").save(tmp_path / "learned")
    with pytest.raises(FinemoeError, match=r"warm=.*the history is of 'another-0123', not of 'golden'.*name another file"):
        counts(warm=tmp_path / "learned")
    Forecaster(4, 8, 2).save(tmp_path / "learned")
    with pytest.raises(FinemoeError, match="of a model with 4 layers x 8 experts / 2, this model has 4 layers x 6 experts / 2"):
        counts(warm=tmp_path / "learned")


def test_a_damaged_file_is_refused_and_stays(tmp_path):
    file = tmp_path / "learned"
    Forecaster(4, 6, 2).save(file)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(FinemoeError, match=r"warm=.*remove this one to start afresh"):
        counts(warm=file)
    assert file.read_bytes() == content


def test_a_history_and_a_warm_file_are_one_too_many(tmp_path):
    with pytest.raises(FinemoeError, match=r"give either history, .* or warm"):
        counts(history=PAST, warm=tmp_path / "learned")
    with pytest.raises(FinemoeError, match="is a folder"):
        counts(warm=tmp_path)


@pytest.mark.parametrize("least_gain", [-0.001, 1.5, float("nan")])
def test_a_gain_out_of_range_is_refused(least_gain):
    with pytest.raises(FinemoeError, match=r"least_gain is .*; it must be in 0\.\.1"):
        counts(least_gain=least_gain)


def test_the_more_a_prefetch_must_gain_the_fewer_there_are():
    loads = [counts(history=PAST, least_gain=gain)[1] for gain in (0.0, 0.35, 0.7, 0.99)]
    assert loads == sorted(loads, reverse=True)
    assert loads[0] > loads[-1]
