"""Long prompts are streamed: the same bits, the counts of the replay, every expert loaded once, and no failure hangs."""

import ctypes
import threading

import numpy as np
import pytest
import torch

import finemoe
from finemoe.errors import EngineError, FinemoeError
from finemoe.models.layers import find_moe_layers
from finemoe.policies import POLICIES
from finemoe.runtime import fetching, lean, transitions
from finemoe.runtime.link import Link
from tests.runtime.models import FAMILIES, ODD_FAMILY, build, padded_batch
from tests.runtime.test_faults import Interrupts
from tests.runtime.test_memory import Fixture, use
from tests.runtime.test_padding import Ready, batch_of

STEPS = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
STREAMING = {"stream_prompts_from": 4}
BESIDE = ("finemoe", "finemoe-plus", "promoe", "on-demand")
WAITING = ("mixtral-offloading", "moe-infinity", "deepspeed-inference")


CASES = [(policy, *sizes) for policy in BESIDE + WAITING for sizes in ((0.7, 1), (0.1, 1), (0.6, 2))]


@pytest.mark.parametrize(("policy", "share", "devices"), CASES)
def test_a_streamed_prompt_has_the_counts_of_its_replay(policy, share, devices):
    """Two batches one after the other, so that the second finds what the first has left in the cache."""
    model, batch = build("qwen2_moe"), batch_of([1, 4, 2], 11)
    prompts, steps = list("abcdef"), {name: STEPS[name] for name in ("max_new_tokens", "min_new_tokens")}
    trace = finemoe.record(model, prompts, tokenizer=Ready(batch), batch_size=3, lookahead=(1,), **steps)
    expected = model.generate(**batch, **STEPS)
    with finemoe.offload(model, share, policy, devices=devices, asynchronous=False, **STREAMING) as engine:
        for _ in range(2):
            assert torch.equal(model.generate(**batch, **STEPS), expected)
        live, record_bytes = engine.report(), engine.records.record_bytes
    told = {"devices": devices, "expert_bytes": record_bytes, "batch_size": 3}
    replayed = finemoe.replay(trace, policy, share, **told, **STREAMING)
    names = ["accesses", "layer_hits", "layer_misses", "prefetched_bytes", "demand_bytes", "wasted_bytes", "useful_bytes"]
    assert {name: getattr(live, name) for name in names} == {name: getattr(replayed, name) for name in names}
    np.testing.assert_equal(live.recall_at_k, replayed.recall_at_k)
    published = finemoe.replay(trace, policy, share, **told)
    assert (published.layer_hits == replayed.layer_hits) == (policy in WAITING), "these never stream"


@pytest.mark.parametrize(
    ("family", "policy"), [*((family, "on-demand") for family in (*FAMILIES, ODD_FAMILY)), ("mixtral", "finemoe-plus")]
)
@pytest.mark.parametrize(
    ("share", "options"),
    [(0.05, {}), (0.3, {"devices": 2}), (0.6, {}), (0.5, {"host_memory": 0})],
    ids=["one expert", "two devices", "most", "on disk"],
)
def test_bits_are_those_of_eager(family, policy, share, options):
    model, batch = build(family), padded_batch(4)
    with torch.no_grad():
        logits, tokens = model(**batch).logits, model.generate(**batch, **STEPS)
    with finemoe.offload(model, share, policy, link="paced:20MB/s", **options, **STREAMING), torch.no_grad():
        assert torch.equal(model(**batch).logits, logits)
        assert torch.equal(model.generate(**batch, **STEPS), tokens)


def test_packed_experts_are_streamed_too(tmp_path):
    build("mixtral").save_pretrained(tmp_path)
    batch, found = padded_batch(), []
    for told in ({"stream_prompts_from": None}, STREAMING):
        model, engine = finemoe.load(tmp_path, 0.5, "on-demand", expert_format="int8", asynchronous=False, **told)
        with engine:
            found.append(model.generate(**batch, **STEPS))
            assert (engine.report().prefetched_bytes > 0) == (told["stream_prompts_from"] is not None)
    assert torch.equal(*found)


def test_grouped_products_of_a_streamed_prompt_are_those_of_one_loaded_on_demand():
    model, batch = build("mixtral"), padded_batch()
    found = []
    for threshold in (None, 4):
        with finemoe.offload(model, 0.6, "on-demand", grouped_from=4, stream_prompts_from=threshold), torch.no_grad():
            found.append(model(**batch).logits)
    torch.testing.assert_close(*found)


def test_a_prompt_in_pieces_streams_every_long_piece():
    model, (tokens, mask) = build("mixtral"), padded_batch(1, 21).values()
    expected = model.generate(tokens, attention_mask=mask, prefill_chunk_size=8, **STEPS)
    with finemoe.offload(model, 0.6, "on-demand", asynchronous=False, stream_prompts_from=8) as engine:
        seen = note_streamed(engine)
        assert torch.equal(model.generate(tokens, attention_mask=mask, prefill_chunk_size=8, **STEPS), expected)
    assert seen == [True, True, *[False] * STEPS["max_new_tokens"]], "two pieces of 8, one of 5, and 4 decode steps"


def note_streamed(engine) -> list[bool]:
    """Whether each iteration from now on is streamed."""
    memory, seen = engine.memories.memories[0], []
    start_iteration = memory.start_iteration

    def note(iteration: int, is_streamed: bool) -> None:
        seen.append(is_streamed)
        start_iteration(iteration, is_streamed)

    memory.start_iteration = note
    return seen


def long_prompt(model, num_tokens: int = 120) -> torch.Tensor:
    return torch.randint(2, 96, (1, num_tokens), generator=torch.Generator().manual_seed(3))


def num_demanded(model, tokens: torch.Tensor) -> int:
    """Experts that the prompt demands, over all layers."""
    seen: list[int] = []
    hooks = [
        layer.experts.register_forward_pre_hook(lambda module, args: seen.append(len(args[1].unique())))
        for layer in find_moe_layers(model)
    ]
    with torch.no_grad():
        model(tokens)
    for hook in hooks:
        hook.remove()
    return sum(seen)


@pytest.mark.parametrize("policy", ["on-demand", "finemoe", "finemoe-plus"])
@pytest.mark.parametrize("share", [0.5, 0.75])
def test_each_expert_is_loaded_once(policy, share):
    """With at least two layers of slots, nothing is evicted before its use, however slow the link is."""
    model = build("mixtral")
    tokens = long_prompt(model)
    assert num_demanded(model, tokens) == 32, "all experts of all layers"
    with finemoe.offload(model, share, policy, link="paced:8MB/s", stream_prompts_from=100) as engine, torch.no_grad():
        model(tokens)
        report, record_bytes = engine.report(), engine.records.record_bytes
    assert report.demand_bytes + report.prefetched_bytes == 32 * record_bytes
    assert report.wasted_bytes == 0


def test_the_next_prompt_finds_what_the_window_left():
    """Three of four layers fit: two stay, and the other two pass through the slots of one."""
    model = build("mixtral")
    tokens = long_prompt(model)
    with finemoe.offload(model, 0.75, "on-demand", asynchronous=False, stream_prompts_from=100) as engine, torch.no_grad():
        loads = []
        for _ in range(4):
            engine.reset_counters()
            model(tokens)
            report = engine.report()
            loads.append((report.demand_bytes + report.prefetched_bytes) // engine.records.record_bytes)
    assert loads == [32, 16, 16, 16]


def generate_often(model, batch) -> None:
    for _ in range(9):
        model.generate(**batch, **STEPS)


IN_LINE = ("linear", "demand", "start_iteration", "take_next", "settle")


def test_layers_that_have_been_idle_so_far_are_not_streamed():
    fixture = Fixture(slots=20, asynchronous=False)
    memory = fixture.memory
    for layer in (0, 1, 3):
        use(memory, layer, [0])
        memory.board.has_run[layer] = True
    fixture.link.log.clear()
    memory.start_iteration(2, True)
    assert sorted(fixture.order()) == [1, 2, 3, 5, 6, 7, 13, 14], "a window of two layers' experts, none of layer 2"
    memory.close()


@pytest.mark.parametrize("at", [1, 5])
@pytest.mark.parametrize(("where", "beside"), [*((where, False) for where in IN_LINE), ("linear", True), ("demand", True)])
def test_an_interrupt_in_a_streamed_prompt_and_then_again(where, at, beside, monkeypatch):
    model, batch = build("mixtral"), padded_batch()
    expected = model.generate(**batch, **STEPS)
    holder = {"linear": lean, "take_next": fetching, "settle": fetching}.get(where, transitions)
    with finemoe.offload(model, 0.6, "finemoe", asynchronous=beside, link="paced:20MB/s", **STREAMING) as engine:
        monkeypatch.setattr(holder, where, Interrupts(getattr(holder, where), at))
        with pytest.raises(KeyboardInterrupt):
            generate_often(model, batch)
        monkeypatch.undo()
        for _ in range(2):
            assert torch.equal(model.generate(**batch, **STEPS), expected)
        cache = engine.memories.memories[0].cache
        assert cache.num_admitted - cache.num_evicted == cache.num_held


class FailingLink(Link):
    """Copies at once, until it fails."""

    def __init__(self, num_copies: int) -> None:
        self._left = num_copies

    def copy(self, sink: int, source: int, size: int, fence: int) -> int:
        self._left -= 1
        if self._left < 0:
            raise OSError("the cable is out")
        ctypes.memmove(sink, source, size)
        return 0

    def wait(self, mark: int, most_ns: int) -> int:
        return 1


@pytest.mark.parametrize("num_copies", [0, 5, 20])
def test_a_link_that_fails_in_a_streamed_prompt_is_raised_and_nothing_hangs(num_copies):
    model, batch = build("mixtral"), padded_batch()
    expected = model.generate(**batch, **STEPS)
    with finemoe.offload(model, 0.6, "on-demand", **STREAMING) as engine:
        engine.memories.memories[0].connect(FailingLink(num_copies))
        with pytest.raises((EngineError, OSError), match="the cable is out"):
            generate_often(model, batch)
    assert torch.equal(model.generate(**batch, **STEPS), expected)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("finemoe")]


@pytest.mark.parametrize("value", [0, -1, 1.5, "256"])
def test_a_threshold_that_is_no_number_of_tokens_is_refused(value):
    with pytest.raises(FinemoeError, match=r"stream_prompts_from is .*; it must be a number of tokens, at least 1, or None"):
        finemoe.offload(build("mixtral"), 0.5, stream_prompts_from=value)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_systems_that_wait_or_know_never_stream(name):
    setup = finemoe.policies.PolicySetup(4, 8, 2, 32, stream_prompts_from=1)
    policy = POLICIES[name](setup)
    assert policy.streams(1, True) == policy.streams(1, None) == (name in BESIDE)
    assert not policy.streams(1, False)


def test_a_layer_called_by_itself_is_not_streamed():
    """No other layer follows, so whatever is loaded for one is wasted."""
    model = build("mixtral")
    with finemoe.offload(model, 0.3, "on-demand", asynchronous=False, stream_prompts_from=8) as engine, torch.no_grad():
        seen = note_streamed(engine)
        for layer in (2, 0):
            model.model.layers[layer].mlp(torch.randn(1, 20, 32))
        assert seen == [False, False]
        assert engine.report().prefetched_bytes == 0
        model(inputs_embeds=torch.randn(1, 20, 32))
        assert seen[2:] == [True]
