"""Warm-up profiles: a run that starts from earlier ones generates the same tokens, with fewer experts loaded on demand."""

import numpy as np
import pytest
import torch

import finemoe
from finemoe.errors import EngineError, FinemoeError
from finemoe.runtime.profile import Profile
from tests.runtime.models import build, padded_batch

POLICIES = ("on-demand", "finemoe", "finemoe-plus", "moe-infinity", "no-offload")


def serve(model, policy: str, path=None, out=None, **options):
    """Tokens and the report of one engine that starts from a profile and writes one."""
    with finemoe.offload(model, 0.5, policy, asynchronous=False, **options) as engine:
        loaded = engine.load_profile(path) if path is not None else 0
        tokens = model.generate(**padded_batch(), max_new_tokens=6, do_sample=False)
        report = engine.report()
        if out is not None:
            engine.save_profile(out)
    return tokens, report, loaded


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("devices", [1, 2])
def test_a_warm_run_generates_the_same_and_loads_less_on_demand(policy, devices, tmp_path):
    model, path = build("mixtral"), tmp_path / "a.profile"
    tokens, cold, _ = serve(model, policy, out=path, devices=devices)
    again, warm, loaded = serve(model, policy, path, devices=devices)
    assert torch.equal(tokens, again)
    if policy == "no-offload":
        assert loaded == 0  # everything is there already
        return
    assert loaded > 0
    assert warm.demand_bytes < cold.demand_bytes
    assert warm.hits > cold.hits


def test_demands_are_those_of_the_runs_and_earlier_ones_fade(tmp_path):
    model, path = build("mixtral"), tmp_path / "a.profile"
    _, first, _ = serve(model, "on-demand", out=path)
    one = Profile.load(path)
    assert one.num_runs == 1
    assert one.demands.sum(axis=1).tolist() == [
        hits + late + misses for hits, late, misses in zip(first.layer_hits, first.layer_late, first.layer_misses, strict=True)
    ]
    serve(model, "on-demand", path, out=path)
    two = Profile.load(path)
    assert two.num_runs == 2
    np.testing.assert_array_equal(two.demands, 1.5 * one.demands)  # the same prompts again
    experts = two.experts()
    assert experts == sorted(experts, key=lambda key: (-two.demands[key], key))
    assert len(experts) == np.count_nonzero(two.demands)


@pytest.mark.parametrize("policy", ["finemoe", "finemoe-plus"])
def test_what_a_policy_learned_goes_on(policy, tmp_path):
    model, path = build("mixtral"), tmp_path / "a.profile"
    with finemoe.offload(model, 0.5, policy, asynchronous=False) as engine:
        model.generate(**padded_batch(), max_new_tokens=6, do_sample=False)
        engine.save_profile(path)
        learned = {name: array.copy() for name, array in engine.policy.learned().items()}
    assert learned
    with finemoe.offload(model, 0.5, policy, asynchronous=False) as engine:
        engine.load_profile(path)
        restored = engine.policy.learned()
        assert restored.keys() == learned.keys()
        for name, array in learned.items():
            np.testing.assert_array_equal(restored[name], array)
        model.generate(**padded_batch(), max_new_tokens=6, do_sample=False)
        assert any(not np.array_equal(array, learned.get(name)) for name, array in engine.policy.learned().items())


@pytest.mark.parametrize("policy", ["finemoe", "finemoe-plus", "on-demand"])
def test_a_profile_may_be_loaded_between_requests_of_a_running_engine(policy, tmp_path):
    """With prefetches in a thread of their own."""
    model, path = build("mixtral"), tmp_path / "a.profile"
    expected, _, _ = serve(model, policy, out=path)
    with finemoe.offload(model, 0.5, policy) as engine:
        for _ in range(3):
            engine.load_profile(path)
            assert torch.equal(model.generate(**padded_batch(), max_new_tokens=6, do_sample=False), expected)
            engine.save_profile(path)


def test_one_file_serves_several_policies(tmp_path):
    """A policy takes the demands of all runs, and what it learned itself; the rest stays in the file."""
    model, path = build("mixtral"), tmp_path / "a.profile"
    serve(model, "finemoe", out=path)
    before = Profile.load(path).learned["finemoe"]
    serve(model, "finemoe-plus", path, out=path)
    serve(model, "on-demand", path, out=path)
    after = Profile.load(path)
    assert after.num_runs == 3
    assert after.learned.keys() == {"finemoe", "finemoe-plus"}
    for name, array in before.items():
        np.testing.assert_array_equal(after.learned["finemoe"][name], array)


def test_a_smaller_store_takes_what_fits(tmp_path):
    model, path = build("mixtral"), tmp_path / "a.profile"
    serve(model, "finemoe", out=path)
    with finemoe.offload(model, 0.5, "finemoe", store_capacity=3, asynchronous=False) as engine:
        engine.load_profile(path)
        assert len(engine.policy.store) == 3
        model.generate(**padded_batch(), max_new_tokens=2, do_sample=False)


def test_a_profile_of_another_model_or_no_profile_is_one_line(tmp_path):
    path = tmp_path / "a.profile"
    serve(build("mixtral"), "on-demand", out=path)
    model = build("qwen2_moe")
    with finemoe.offload(model, 0.5, "on-demand") as engine:
        with pytest.raises(FinemoeError, match=r"a\.profile: this profile is of 'MixtralForCausalLM-\w+', not of 'Qwen2Moe"):
            engine.load_profile(path)
        with pytest.raises(FinemoeError, match=r"none\.profile: no such warm-up-profile file"):
            engine.load_profile(tmp_path / "none.profile")
        (tmp_path / "text.profile").write_text("text")
        with pytest.raises(FinemoeError, match=r"text\.profile: truncated or not a warm-up-profile file .* to start afresh$"):
            engine.load_profile(tmp_path / "text.profile")
    with pytest.raises(EngineError, match="this engine is closed"):
        engine.save_profile(path)


def test_load_refuses_another_models_profile_before_it_reads_experts(tmp_path, monkeypatch):
    path = tmp_path / "a.profile"
    serve(build("mixtral"), "on-demand", out=path)
    build("qwen2_moe").save_pretrained(tmp_path / "model")
    monkeypatch.setattr("finemoe.runtime.checkpoint.Checkpoint.load_experts", lambda *_: pytest.fail("experts were read"))
    with pytest.raises(FinemoeError, match="this profile is of 'MixtralForCausalLM-"):
        finemoe.load(tmp_path / "model", 0.5, profile=path)
