"""The engine around its forward pass: attach and detach, counters, refusals, failures."""

import ctypes
import threading

import numpy as np
import pytest
import torch

import finemoe
from finemoe.errors import EngineError, FinemoeError
from finemoe.models.layers import find_moe_layers
from finemoe.policies.base import PolicySetup
from finemoe.policies.on_demand import OnDemand
from finemoe.runtime.expert_layout import ExpertLayout
from finemoe.runtime.gates import GateOutput
from finemoe.runtime.link import Link
from finemoe.runtime.matcher import Matcher
from finemoe.runtime.timeline import Timeline
from tests.runtime.models import FAMILIES, build, padded_batch


def engine_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("finemoe")]


@pytest.mark.parametrize("family", FAMILIES)
def test_close_gives_the_model_back_exactly(family):
    model = build(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    facts = [(id(p), p.device, p.dtype, p.shape, p.requires_grad) for p in model.parameters()]
    configs = [id(layer.experts.config) for layer in find_moe_layers(model)]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    engine = finemoe.offload(model, 0.25)
    with torch.no_grad():
        model.generate(**padded_batch(), max_new_tokens=3)
    engine.close()
    engine.close()
    assert [(id(p), p.device, p.dtype, p.shape, p.requires_grad) for p in model.parameters()] == facts
    assert [id(layer.experts.config) for layer in find_moe_layers(model)] == configs
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert engine_threads() == []


def test_close_after_an_exception_in_the_with_block():
    model = build("mixtral")
    with pytest.raises(KeyError), finemoe.offload(model, 0.5):
        raise KeyError
    assert engine_threads() == []
    with torch.no_grad():
        assert torch.isfinite(model(**padded_batch()).logits).all()


def test_experts_are_gone_from_the_model_while_attached():
    model = build("mixtral")
    total = model.num_parameters()
    with finemoe.offload(model, 0.25):
        experts = find_moe_layers(model)[0].experts
        assert experts.gate_up_proj.isnan().all()
        assert experts.gate_up_proj.untyped_storage().nbytes() == 4
        assert (model.num_parameters(), model.dtype, model.device.type) == (total, torch.float32, "cpu")
        with pytest.raises(FinemoeError, match="close"):
            model.state_dict()


def test_the_counters_add_up_to_what_was_demanded():
    model, batch = build("mixtral"), padded_batch()
    demanded = []
    handles = [
        layer.experts.register_forward_pre_hook(lambda m, args: demanded.append(len(args[1].unique())))
        for layer in find_moe_layers(model)
    ]
    with finemoe.offload(model, 0.5, "on-demand") as engine, torch.no_grad():
        model.generate(**batch, max_new_tokens=5, min_new_tokens=5)
        report = engine.report()
    for handle in handles:
        handle.remove()
    assert report.accesses == sum(demanded) == report.hits + report.late + report.misses
    record_bytes = ExpertLayout.of(find_moe_layers(model)[0]).nbytes
    assert report.demand_bytes == report.misses * record_bytes
    assert report.prefetched_bytes == report.wasted_bytes == report.late == 0
    assert (report.num_prefills, report.num_decode_steps) == (1, 4)
    assert report.ttft_s > 0
    assert report.tpot_s > 0
    assert sum(report.layer_hits) == report.hits
    assert sum(report.layer_misses) == report.misses


def test_with_everything_resident_each_expert_is_loaded_once():
    model, batch = build("qwen2_moe"), padded_batch()
    with finemoe.offload(model, 1.0, "on-demand") as engine, torch.no_grad():
        model.generate(**batch, max_new_tokens=6, min_new_tokens=6)
        first = engine.report()
        engine.reset_counters()
        model.generate(**batch, max_new_tokens=6, min_new_tokens=6)
        second = engine.report()
    assert first.misses <= 48
    assert (second.misses, second.hit_rate, second.demand_bytes) == (0, 1.0, 0)


def test_in_line_runs_are_deterministic():
    model, batch = build("mixtral"), padded_batch()

    def counts() -> tuple:
        with finemoe.offload(model, 0.4, asynchronous=False) as engine, torch.no_grad():
            model.generate(**batch, max_new_tokens=8, min_new_tokens=8)
            report = engine.report()
        return report.layer_hits, report.layer_misses, report.prefetched_bytes, report.wasted_bytes, report.recall_at_k

    assert counts() == counts()


def test_bad_input_gets_one_clear_line():
    model = build("mixtral")
    for memory, message in [
        (1, "one expert takes"),
        (1.5, r"share must be in \(0, 1\]"),
        ("6 parsecs", "not a byte count"),
        (True, "expert_memory must be a share"),
    ]:
        with pytest.raises(FinemoeError, match=message):
            finemoe.offload(model, memory)
    with pytest.raises(FinemoeError, match=r"unknown policy 'finemo'; did you mean 'finemoe'\? known: deepspeed-inference, "):
        finemoe.offload(model, 0.5, "finemo")
    with pytest.raises(FinemoeError, match="unknown eviction rule"):
        finemoe.offload(model, 0.5, eviction="mru")
    with pytest.raises(FinemoeError, match="unknown link"):
        finemoe.offload(model, 0.5, link="fast")
    with pytest.raises(FinemoeError, match=r"prefetch_distance is 9; it must be in 1..4"):
        finemoe.offload(model, 0.5, prefetch_distance=9)
    with pytest.raises(FinemoeError, match="no experts that dispatch"):
        finemoe.offload(torch.nn.Linear(2, 2), 0.5)
    with torch.no_grad():  # a refused offload leaves the model untouched
        assert torch.isfinite(model(**padded_batch()).logits).all()
    assert engine_threads() == []


def test_a_second_engine_on_one_model_is_refused():
    model = build("mixtral")
    with finemoe.offload(model, 0.5), pytest.raises(FinemoeError, match="already offloaded"):
        finemoe.offload(model, 0.5)


def test_two_models_from_one_config_do_not_disturb_each_other():
    model, batch = build("mixtral"), padded_batch()
    twin = type(model)(model.config).eval()
    with torch.no_grad():
        expected, twin_expected = model(**batch).logits, twin(**batch).logits
        with finemoe.offload(model, 0.2), finemoe.offload(twin, 0.3, "on-demand"):
            assert torch.equal(model(**batch).logits, expected)
            assert torch.equal(twin(**batch).logits, twin_expected)
        assert torch.equal(twin(**batch).logits, twin_expected)


@pytest.mark.parametrize("broken", ["search", "copy"])
def test_a_failing_worker_is_raised_in_the_caller_with_its_cause(broken, monkeypatch):
    model, batch = build("mixtral"), padded_batch()
    engine = finemoe.offload(model, 0.3)

    def fail(*args, **kwargs):
        raise RuntimeError("the moon is in the way")

    if broken == "search":
        monkeypatch.setattr(engine.policy, "gate_step", fail)
    else:

        class Broken(Link):
            """For the worker; what is demanded comes."""

            def copy(self, sink, source, size, fence):
                if threading.current_thread().name == "finemoe-link":
                    fail()
                ctypes.memmove(sink, source, size)
                return 0

            def wait(self, mark, most_ns):
                return 1

        engine.memories.memories[0].connect(Broken())
    with engine, torch.no_grad(), pytest.raises(EngineError, match="moon") as raised:
        model.generate(**batch, max_new_tokens=100, min_new_tokens=100)
    assert isinstance(raised.value.__cause__, RuntimeError)
    assert engine_threads() == []


def test_a_slow_matcher_drops_whole_iterations_and_says_so(monkeypatch):
    model, batch = build("mixtral"), padded_batch()
    with finemoe.offload(model, 0.3) as engine, torch.no_grad():
        gate = threading.Event()
        original = engine.policy.start_iteration
        monkeypatch.setattr(engine.policy, "start_iteration", lambda context: (gate.wait(), original(context))[1])
        for _ in range(9):
            model(**batch)
        gate.set()
        report = engine.report()
    assert 1 <= report.skipped_iterations < 9


def test_a_history_of_the_same_request_spares_loads_on_demand():
    """FineMoE finds more experts there than on-demand loading, and so loads fewer when they are needed."""
    model = build("qwen2_moe")
    batch = {name: value[-1:] for name, value in padded_batch().items()}
    from tests.runtime.test_lossless import WordTokenizer

    class Same(WordTokenizer):
        def __call__(self, prompts, return_tensors, padding):
            from transformers import BatchEncoding

            return BatchEncoding(batch)

    trace = finemoe.record(model, ["x"], tokenizer=Same(), max_new_tokens=12)
    hit_rates, loaded_bytes = {}, {}
    for policy, history in [("on-demand", None), ("finemoe", trace)]:
        with finemoe.offload(model, 0.5, policy, history=history, asynchronous=False) as engine, torch.no_grad():
            model.generate(**batch, max_new_tokens=12, min_new_tokens=12)
            report = engine.report()
            hit_rates[policy], loaded_bytes[policy] = report.hit_rate, report.demand_bytes
    assert hit_rates["finemoe"] > hit_rates["on-demand"]
    assert loaded_bytes["finemoe"] < loaded_bytes["on-demand"]
    assert not np.isnan(hit_rates["finemoe"])


@pytest.mark.parametrize("policy", ["finemoe", "finemoe-plus", "on-demand"])
@pytest.mark.parametrize("num_devices", [1, 3])
def test_preload_fills_the_slots_and_no_more(policy, num_devices):
    model, batch = build("mixtral"), padded_batch()
    with torch.no_grad():
        expected = model(**batch).logits
    with finemoe.offload(model, 0.5, policy, devices=num_devices) as engine, torch.no_grad():
        engine.preload()
        engine.preload()
        report = engine.report()
        assert report.prefetched_bytes == engine.expert_memory_bytes
        assert torch.equal(model(**batch).logits, expected)
        assert engine.report().hits > 0


def test_with_everything_resident_nothing_is_searched_and_everything_hits():
    model, batch = build("mixtral"), padded_batch()
    with torch.no_grad():
        expected = model(**batch).logits
    with finemoe.offload(model, 1.0) as engine, torch.no_grad():
        engine.preload()
        for _ in range(3):
            assert torch.equal(model(**batch).logits, expected)
        report = engine.report()
        assert len(engine.policy.store) == 0
    assert (report.hit_rate, report.late, report.misses, report.demand_bytes) == (1.0, 0, 0, 0)
    assert report.accesses > 0


def test_a_request_whose_first_iteration_was_left_out_still_begins():
    """Where the matcher is too far behind to see a prefill, the next iteration it sees tells the policy of the new request."""
    told: list[bool] = []

    class Listening(OnDemand):
        def start_iteration(self, context):
            told.append(context.starts_request)
            return []

    policy = Listening(PolicySetup(1, 2, 1, prefetch_distance=1))
    matcher = Matcher(policy, lambda *_: None, Timeline(), asynchronous=True)

    def publish(starts_request: bool) -> bool:
        is_seen = matcher.publish_start(1, None, is_prefill=False, starts_request=starts_request, rows=None)
        matcher.publish_end()
        return is_seen

    num_seen = 0
    while publish(starts_request=False):  # as long as it does not begin to work, it falls behind
        num_seen += 1
    assert not publish(starts_request=True)
    matcher.start()
    matcher.flush()
    assert publish(starts_request=False)
    assert publish(starts_request=False)
    matcher.close()
    assert told == [*[False] * num_seen, True, False]


def test_a_matcher_whose_ends_are_interrupted_does_not_seem_to_be_behind():
    class Interrupted(OnDemand):
        def end_iteration(self):
            raise KeyboardInterrupt

    matcher = Matcher(Interrupted(PolicySetup(1, 2, 1, prefetch_distance=1)), lambda *_: None, Timeline(), asynchronous=False)
    for _ in range(6):
        assert matcher.publish_start(1, None, is_prefill=False, starts_request=False, rows=None)
        with pytest.raises(KeyboardInterrupt):
            matcher.publish_end()


def test_eviction_hears_what_is_predicted_of_a_layer_that_did_not_run_and_nothing_is_loaded_for_it():
    """Where a layer stands idle (of another modality), the policy is told that every expert is alike."""
    posted: list[tuple[int | None, list[int]]] = []

    class NextLayer(OnDemand):
        def on_gate(self, layer, probs, experts, lookahead=None):
            return [self.wanted(layer + 1, probs)] if layer + 1 < 4 else []

    policy = NextLayer(PolicySetup(4, 2, 1, prefetch_distance=1))
    matcher = Matcher(
        policy, lambda number, told: posted.append((number, [one.layer for one in told])), Timeline(), asynchronous=False
    )
    matcher.publish_start(7, None, is_prefill=False, starts_request=True, rows=None)
    for layer in (0, 3):
        scores, selected = torch.tensor([[1.0, 0.0]]), np.array([[0]])
        matcher.publish_gate(7, GateOutput(layer, 2, 2, scores, selected, torch.ones(1, 1)), rows=None)
    assert posted == [(7, []), (7, [1]), (None, [2]), (None, [3]), (7, [])]
