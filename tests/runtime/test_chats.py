"""Chats over a kept cache: every turn is counted by itself, and what a policy knows of the conversation stays."""

import copy
from contextlib import closing

import pytest
import torch
from transformers import DynamicCache, StaticCache

import finemoe
from tests.runtime.models import build

IDS = torch.arange(5, 16)[None]
TOKENS = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
NUM_TURNS = 3


class Told:
    """Whether a policy is told of every iteration that a request starts."""

    def __init__(self, engine) -> None:
        self.starts: list[bool] = []
        start = engine.policy.start_iteration
        engine.policy.start_iteration = lambda context: (self.starts.append(context.starts_request), start(context))[1]


def talk(model, cache, **options) -> list[torch.Tensor]:
    """Turns over one cache; every message is four tokens."""
    tokens, turns = IDS, []
    for turn in range(NUM_TURNS):
        tokens = model.generate(tokens, **TOKENS, past_key_values=cache, **options)
        turns.append(tokens)
        tokens = torch.cat([tokens, IDS[:, turn : turn + 4]], 1)
    return turns


def cache_of(kind: str, model):
    config = model.config
    return StaticCache(config=config, max_cache_len=64) if kind == "static" else DynamicCache(config=config)


@pytest.mark.parametrize("kind", ["dynamic", "static", "in pieces", "prompt lookup"])
@pytest.mark.parametrize("policy", ["finemoe", "finemoe-plus", "moe-infinity"])
def test_turns_are_equal_and_the_conversation_starts_once(policy, kind):
    model = build("mixtral")
    options = {"in pieces": {"prefill_chunk_size": 2}, "prompt lookup": {"prompt_lookup_num_tokens": 2}}.get(kind, {})
    expected = talk(copy.deepcopy(model), cache_of(kind, model), **options)
    with finemoe.offload(model, 0.3, policy, asynchronous=False) as engine:
        told, cache = Told(engine), cache_of(kind, model)
        found = talk(model, cache, **options)
        report = engine.report()
    assert all(map(torch.equal, found, expected))
    assert told.starts == [True, *[False] * (len(told.starts) - 1)]
    assert (report.num_prefills, report.num_unknown_steps, len(report.requests)) == (NUM_TURNS, 0, NUM_TURNS)
    assert all(one.ttft_s > 0 and one.tpot_s > 0 for one in report.requests)
    assert sum(one.accesses for one in report.requests) == report.accesses
    if kind != "prompt lookup":
        assert [one.num_decode_steps for one in report.requests] == [5] * NUM_TURNS


def test_the_cache_that_generate_returns_goes_on():
    model = build("mixtral")
    with finemoe.offload(model, 0.3, asynchronous=False) as engine:
        told = Told(engine)
        first = model.generate(IDS, **TOKENS, return_dict_in_generate=True)
        tokens = torch.cat([first.sequences, IDS[:, :4]], 1)
        model.generate(tokens, **TOKENS, past_key_values=first.past_key_values)
        report = engine.report()
    assert told.starts == [True, *[False] * 11]
    assert (report.num_prefills, len(report.requests)) == (2, 2)


def test_a_cropped_cache_goes_on_and_an_emptied_one_starts():
    model = build("mixtral")
    with finemoe.offload(model, 0.3, asynchronous=False) as engine:
        told, cache = Told(engine), DynamicCache(config=model.config)
        tokens = model.generate(IDS, **TOKENS, past_key_values=cache)
        cache.crop(8 - cache.get_seq_length())  # the reply is taken back, and part of the message
        model.generate(torch.cat([tokens[:, :8], IDS[:, :3]], 1), **TOKENS, past_key_values=cache)
        cache.reset()
        model.generate(IDS, **TOKENS, past_key_values=cache)
    assert told.starts == [True, *[False] * 11, True, *[False] * 5]


def test_an_engine_that_comes_later_starts_the_conversation():
    model = build("mixtral")
    cache = DynamicCache(config=model.config)
    tokens = torch.cat([model.generate(IDS, **TOKENS, past_key_values=cache), IDS[:, :4]], 1)
    with closing(finemoe.offload(model, 0.3, asynchronous=False)) as engine:
        told = Told(engine)
        model.generate(tokens, **TOKENS, past_key_values=cache)
    assert told.starts == [True, *[False] * 5]


@pytest.mark.parametrize("is_kept", [True, False])
def test_finemoe_plus_remembers_the_conversation(is_kept):
    model = build("mixtral")
    with finemoe.offload(model, 0.3, "finemoe-plus", asynchronous=False) as engine:
        forecaster, forgotten = engine.policy.forecaster, []
        forget = forecaster.start_request
        forecaster.start_request = lambda: (forgotten.append(True), forget())
        cache = DynamicCache(config=model.config)
        tokens = torch.cat([model.generate(IDS, **TOKENS, past_key_values=cache), IDS[:, :4]], 1)
        model.generate(tokens, **TOKENS, past_key_values=cache if is_kept else copy.deepcopy(cache))
    assert len(forgotten) == (1 if is_kept else 2)
