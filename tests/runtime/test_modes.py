"""Every way of generating that Transformers has works unmodified, with the tokens of the model as it was."""

import pytest
import torch
from transformers import CompileConfig, TextStreamer

import finemoe
from finemoe.errors import EngineError, FinemoeError
from tests.runtime.models import build, padded_batch

FIXED = {"max_new_tokens": 7, "min_new_tokens": 7}
ONE_ROW = {name: value[-1:] for name, value in padded_batch().items()}
MODES = {
    "greedy": (padded_batch(), {"do_sample": False}),
    "sampling": (padded_batch(), {"do_sample": True, "top_k": 20, "temperature": 0.9}),
    "beam search": (padded_batch(), {"num_beams": 3, "do_sample": False}),
    "several sequences": (ONE_ROW, {"do_sample": True, "num_return_sequences": 3}),
    "static cache": (padded_batch(), {"do_sample": False, "cache_implementation": "static"}),
    "no cache": (padded_batch(), {"do_sample": False, "use_cache": False}),
    "prompt lookup": (ONE_ROW, {"do_sample": False, "prompt_lookup_num_tokens": 3}),
    "contrast of logits": (padded_batch(), {"do_sample": False, "output_scores": True, "return_dict_in_generate": True}),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("policy", ["finemoe", "on-demand"])
def test_mode_gives_the_same_tokens(mode, policy):
    model = build("mixtral")
    inputs, options = MODES[mode]

    def tokens():
        torch.manual_seed(3)
        found = model.generate(**inputs, **FIXED, **options)
        return found if isinstance(found, torch.Tensor) else found.sequences

    expected = tokens()
    with finemoe.offload(model, 0.3, policy) as engine:
        assert torch.equal(tokens(), expected)
        assert torch.equal(tokens(), expected)  # and again, with a warm cache
        assert engine.report().accesses > 0


def test_assisted_decoding():
    model, assistant = build("mixtral"), build("mixtral", seed=1)
    options = {**FIXED, "do_sample": False, "assistant_model": assistant}
    expected = model.generate(**ONE_ROW, **options)
    with finemoe.offload(model, 0.3), finemoe.offload(assistant, 0.4, "on-demand"):
        assert torch.equal(model.generate(**ONE_ROW, **options), expected)


@pytest.mark.slow
def test_static_cache_with_the_forward_compiled():
    """As `generate` does by itself on CUDA; the switch makes it do so here."""
    model = build("mixtral")
    compile_config = CompileConfig(backend="eager", mode=None)
    compile_config._compile_all_devices = True
    options = {**FIXED, "do_sample": False, "cache_implementation": "static", "compile_config": compile_config}
    expected = model.generate(**padded_batch(), **options)
    with finemoe.offload(model, 0.3) as engine:
        assert torch.equal(model.generate(**padded_batch(), **options), expected)
        report = engine.report()
    assert (report.num_prefills, report.num_decode_steps) == (1, 6)


def test_streaming():
    class Words:
        def decode(self, tokens, **_):
            return " ".join(map(str, tokens)) + " "

    class Collector(TextStreamer):
        def __init__(self):
            super().__init__(Words())
            self.text = ""

        def on_finalized_text(self, text, stream_end=False):
            self.text += text

    def streamed():
        collector = Collector()
        model.generate(**ONE_ROW, **FIXED, do_sample=False, streamer=collector)
        return collector.text

    model = build("mixtral")
    expected = streamed()
    with finemoe.offload(model, 0.3):
        assert streamed() == expected != ""


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_forward_under_either_context(context):
    model = build("qwen2_moe")
    with context():
        expected = model(**padded_batch()).logits
        with finemoe.offload(model, 0.25):
            assert torch.equal(model(**padded_batch()).logits, expected)


def test_requests_are_told_apart():
    model = build("mixtral")
    with finemoe.offload(model, 0.3, "on-demand") as engine:
        model.generate(**padded_batch(), **FIXED, do_sample=False)
        model.generate(**ONE_ROW, max_new_tokens=1, do_sample=False)
        report = engine.report()
    first, second = report.requests
    assert (first.num_decode_steps, second.num_decode_steps) == (6, 0)
    assert first.accesses + second.accesses == report.accesses
    assert first.demand_bytes + second.demand_bytes == report.demand_bytes
    assert first.tpot_s == pytest.approx(report.tpot_s)
    assert (first.ttft_s + second.ttft_s) / 2 == pytest.approx(report.ttft_s)


def test_a_prefill_in_pieces_is_one_request():
    model = build("mixtral")
    with finemoe.offload(model, 0.3, "on-demand") as engine, torch.no_grad():
        tokens = padded_batch()["input_ids"][-1:]
        first = model(tokens[:, :4], use_cache=True)
        model(tokens[:, 4:], past_key_values=first.past_key_values)
        report = engine.report()
    assert (report.num_prefills, report.num_decode_steps, len(report.requests)) == (1, 1, 1)


def test_training_is_refused_clearly():
    model = build("mixtral")
    with finemoe.offload(model, 0.5), pytest.raises(EngineError, match="inference only"):
        model(**padded_batch(), labels=padded_batch()["input_ids"])


def test_report_counts_from_zero_after_a_reset():
    model = build("mixtral")
    with finemoe.offload(model, 0.5) as engine:
        model.generate(**ONE_ROW, **FIXED)
        engine.reset_counters()
        assert engine.report().accesses == 0
        assert engine.report().requests == ()


def test_timeline_is_a_chrome_trace(tmp_path):
    import json

    model = build("mixtral")
    with finemoe.offload(model, 0.3, link="paced:50MB/s") as engine:
        with pytest.raises(FinemoeError, match="nothing was recorded"), engine.timeline(tmp_path / "none.json"):
            pass
        with engine.timeline(tmp_path / "step.json"):
            model.generate(**ONE_ROW, **FIXED)
        model.generate(**ONE_ROW, **FIXED)  # not recorded any more
    events = json.loads((tmp_path / "step.json").read_text())["traceEvents"]
    tracks = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert set(tracks.values()) == {"compute", "link", "matcher"}
    spans = [event for event in events if event["ph"] == "X"]
    assert all(span["ts"] >= 0 and span["dur"] >= 0 for span in spans)
    layers = [span for span in spans if span["name"].startswith("layer ")]
    assert len(layers) == 7 * 4
    on_link = sorted((s["ts"], s["ts"] + s["dur"]) for s in spans if tracks[s["tid"]] == "link")
    assert len(on_link) > 0


def test_a_timeline_ends_with_what_breaks_off_and_says_what_it_left_out(tmp_path, monkeypatch):
    model = build("mixtral")
    with finemoe.offload(model, 0.3, "on-demand") as engine:
        with pytest.raises(KeyboardInterrupt), engine.timeline(tmp_path / "none.json"):
            raise KeyboardInterrupt
        assert not engine.parts.timeline.is_recording
        monkeypatch.setattr("finemoe.runtime.timeline._MOST_SPANS", 5)
        with pytest.warns(UserWarning, match=r"the last \d+ spans are missing"), engine.timeline(tmp_path / "step.json"):
            model.generate(**ONE_ROW, **FIXED)
