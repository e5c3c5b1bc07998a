"""What each iteration was and whose, in every way of calling a model, against the definitions of docs/metrics.md applied by hand
to what plain hooks see of the model alone."""

import copy
import dataclasses
import itertools
import math

import pytest
import torch
from transformers import Cache, ContinuousBatchingConfig, DynamicCache, GenerationConfig, StaticCache

import finemoe
from finemoe.policies.base import Context
from finemoe.runtime.phases import length_of
from tests.runtime.models import build, padded_batch

TOKENS = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
IDS = torch.arange(5, 16)[None]
REPEATED = torch.tensor([[7, 8, 9, 7, 8, 9, 7, 8, 9, 7, 8]])  # prompt lookup finds drafts in it


class Spy:
    """Notes what the policy of an engine is told, and leaves all else to it."""

    def __init__(self, engine) -> None:
        self.told: list[Context] = []
        start = engine.policy.start_iteration
        engine.policy.start_iteration = lambda context: (self.told.append(context), start(context))[1]

    @property
    def prefills(self) -> list[bool | None]:
        return [context.is_prefill for context in self.told]

    @property
    def starts(self) -> list[bool]:
        return [context.starts_request for context in self.told]


class Plain:
    """Of every forward of a model as it is: how many tokens a sequence has, and how many were in the cache before."""

    def __init__(self, model) -> None:
        self.seen: list[tuple[int, int]] = []
        model.model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module, args, kwargs) -> None:
        tokens = kwargs["inputs_embeds"] if kwargs.get("input_ids") is None else kwargs["input_ids"]
        past = kwargs.get("past_key_values")
        self.seen.append((tokens.shape[1], 0 if past is None else int(past.get_seq_length())))


# By name: arguments of `generate`, and what docs/metrics.md makes of its forwards: prefills, decode steps, not timed, requests.
MODES = {
    "greedy": ({}, (1, 5, 0, 1)),
    "beams": ({"num_beams": 3}, (1, 5, 0, 1)),
    "sampling, several sequences": ({"do_sample": True, "num_return_sequences": 3}, (1, 5, 0, 1)),
    "static cache": ({"cache_implementation": "static"}, (1, 5, 0, 1)),
    "no cache": ({"use_cache": False}, (6, 0, 0, 6)),
    "prompt in pieces": ({"prefill_chunk_size": 4}, (1, 5, 0, 1)),
    "prompt in pieces, the last of one token": ({"prefill_chunk_size": 5}, (1, 5, 0, 1)),
    "guidance": ({"guidance_scale": 1.5}, (2, 10, 0, 2)),
    "guidance with a negative prompt": ({"guidance_scale": 1.5, "negative_prompt_ids": IDS[:, :4]}, (2, 10, 0, 2)),
    "prompt embedded by hand": ({"inputs_embeds": None}, (1, 5, 0, 1)),
    "one new token": ({"max_new_tokens": 1, "min_new_tokens": 1}, (1, 0, 0, 1)),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_generation_is_counted_as_it_is_defined(mode):
    model = build("mixtral")
    options, (prefills, steps, unknown, requests) = MODES[mode]
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    if "inputs_embeds" in options:
        options, inputs = {}, {"inputs_embeds": model.get_input_embeddings()(IDS).detach()}

    def generate(one):
        torch.manual_seed(3)
        return one.generate(**inputs, **{**TOKENS, **options})

    expected = generate(reference := copy.deepcopy(model))
    plain = Plain(reference)
    generate(reference)
    with finemoe.offload(model, 0.3, asynchronous=False) as engine:
        spy = Spy(engine)
        assert torch.equal(generate(model), expected)
        report = engine.report()
    assert (report.num_prefills, report.num_decode_steps, report.num_unknown_steps, len(report.requests)) == (
        prefills,
        steps,
        unknown,
        requests,
    )
    assert len(spy.told) == len(plain.seen)
    num_pieces = sum(past > 0 and tokens > 1 for tokens, past in plain.seen)
    if "pieces" not in mode:
        assert num_pieces == 0
        assert spy.prefills == [past == 0 for _, past in plain.seen]
        assert spy.starts == spy.prefills
    else:
        num_fed = -(-IDS.shape[1] // options["prefill_chunk_size"])
        assert spy.prefills == [True] * num_fed + [False] * 5
        assert spy.starts == [True] + [False] * (num_fed + 4)
    assert (report.ttft_s > 0, report.tpot_s > 0) == (prefills > 0, steps > 0)
    assert [one.num_decode_steps for one in report.requests] == [steps // requests] * requests
    assert all(one.ttft_s > 0 for one in report.requests)


@pytest.mark.parametrize("helper", ["prompt lookup", "assistant"])
def test_drafts_that_are_verified_are_decode_steps(helper):
    model, assistant = build("mixtral"), build("mixtral", seed=1)
    options = {"prompt_lookup_num_tokens": 3} if helper == "prompt lookup" else {"assistant_model": assistant}
    plain = Plain(reference := copy.deepcopy(model))
    expected = reference.generate(REPEATED, **TOKENS, **options)
    with finemoe.offload(model, 0.3, asynchronous=False) as engine, finemoe.offload(assistant, 0.3, "on-demand") as other:
        spy = Spy(engine)
        assert torch.equal(model.generate(REPEATED, **TOKENS, **options), expected)
        report, drafting = engine.report(), other.report()
    assert any(tokens > 1 and past > 0 for tokens, past in plain.seen), "nothing was drafted"
    assert (report.num_prefills, report.num_decode_steps, report.num_unknown_steps) == (1, len(plain.seen) - 1, 0)
    assert spy.prefills == [past == 0 for _, past in plain.seen]
    assert len(report.requests) == 1
    assert report.tpot_s > 0
    if helper == "assistant":
        assert (drafting.num_prefills, drafting.num_unknown_steps, len(drafting.requests)) == (1, 0, 1)


def test_a_turn_over_a_kept_cache_is_a_request_that_continues_the_last_one():
    model = build("mixtral")
    with finemoe.offload(model, 0.3, asynchronous=False) as engine:
        spy, cache = Spy(engine), DynamicCache(config=model.config)
        first = model.generate(IDS, **TOKENS, past_key_values=cache)
        second = model.generate(torch.cat([first, IDS[:, :4]], 1), **TOKENS, past_key_values=cache)
        model.generate(torch.cat([second, IDS[:, :0]], 1), **TOKENS, past_key_values=cache)  # it only goes on: one token is new
        report = engine.report()
    turn = [True, *[False] * 5]
    assert (spy.prefills, spy.starts) == (turn * 3, [True, *[False] * 17])
    assert (report.num_prefills, report.num_decode_steps, report.num_unknown_steps) == (3, 15, 0)
    assert [one.num_decode_steps for one in report.requests] == [5, 5, 5]


WAYS = {
    "keyword": lambda model, cache, ids: model(ids, past_key_values=cache),
    "position": lambda model, cache, ids: model(ids, None, None, cache),
    "inner module": lambda model, cache, ids: model.model(ids, past_key_values=cache),
    "inner module, position": lambda model, cache, ids: model.model(ids, None, None, cache),
    "embedded": lambda model, cache, ids: model(inputs_embeds=model.get_input_embeddings()(ids), past_key_values=cache),
    "embedded, inner": lambda model, cache, ids: model.model(
        inputs_embeds=model.get_input_embeddings()(ids), past_key_values=cache
    ),
    "tuple": lambda model, cache, ids: model(ids, past_key_values=cache, return_dict=False),
}


@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
@pytest.mark.parametrize("way", WAYS)
def test_however_the_cache_is_given(way, kind):
    model, call = build("mixtral"), WAYS[way]
    with finemoe.offload(model, 0.3, asynchronous=False) as engine, torch.no_grad():
        spy = Spy(engine)
        for num_steps in (3, 2):
            cache = kind(config=model.config, max_cache_len=32) if kind is StaticCache else kind(config=model.config)
            call(model, cache, IDS[:, :5])
            for at in range(num_steps):
                call(model, cache, IDS[:, 5 + at : 6 + at])
        report = engine.report()
    expected = [True, False, False, False, True, False, False]
    assert (spy.prefills, spy.starts) == (expected, expected)
    assert (report.num_prefills, report.num_decode_steps, report.num_unknown_steps) == (2, 5, 0)
    assert [one.num_decode_steps for one in report.requests] == [3, 2]
    assert all(one.ttft_s > 0 and one.tpot_s > 0 for one in report.requests)


@pytest.mark.parametrize("way", WAYS)
def test_a_prompt_fed_in_pieces_by_hand_is_not_timed(way):
    model, call = build("mixtral"), WAYS[way]
    with finemoe.offload(model, 0.3, asynchronous=False) as engine, torch.no_grad():
        spy, cache = Spy(engine), DynamicCache(config=model.config)
        call(model, cache, IDS[:, :3])
        call(model, cache, IDS[:, 3:])
        report = engine.report()
        call(model, cache, IDS[:, :1])
        later = engine.report()
    assert (report.num_prefills, report.num_decode_steps, len(report.requests)) == (1, 1, 1)
    assert (report.num_unknown_steps, math.isnan(report.ttft_s), math.isnan(report.tpot_s)) == (2, True, True)
    assert math.isnan(report.requests[0].ttft_s)
    assert "unknown" in dict(report.rows())["TTFT"]
    assert (later.num_decode_steps, later.num_unknown_steps, later.tpot_s > 0) == (2, 2, True)
    assert (spy.prefills, spy.starts) == ([True, False, False], [True, False, False])


def test_prompts_fed_in_pieces_by_hand_in_turns_are_not_timed():
    model = build("mixtral")
    with finemoe.offload(model, 0.3, "on-demand") as engine, torch.no_grad():
        caches = [DynamicCache(config=model.config) for _ in range(3)]
        for pieces in (IDS[:, :4], IDS[:, 4:]):
            for cache in caches[:2]:
                model(pieces, past_key_values=cache)
        model(IDS, past_key_values=caches[2])
        report = engine.report()
    assert (report.num_prefills, report.num_decode_steps, report.num_unknown_steps) == (3, 2, 4)
    assert [math.isnan(one.ttft_s) for one in report.requests] == [True, True, False]
    assert report.ttft_s == report.requests[2].ttft_s


def test_two_requests_that_take_turns_keep_their_own():
    model = build("mixtral")
    with finemoe.offload(model, 0.3, "on-demand") as engine, torch.no_grad():
        first = model(IDS, use_cache=True).past_key_values
        second = model(IDS[:, :3], use_cache=True).past_key_values
        alone = engine.report().requests
        for _ in range(2):
            model(IDS[:, :1], past_key_values=first)
        model(IDS[:, :1], past_key_values=second)
        model(IDS[:, :1], past_key_values=first)
        report = engine.report()
    assert [one.num_decode_steps for one in report.requests] == [3, 1]
    assert [one.ttft_s for one in report.requests] == [one.ttft_s for one in alone]
    for name in ("accesses", "hits", "misses", "demand_bytes", "num_decode_steps"):
        assert sum(getattr(one, name) for one in report.requests) == getattr(report, name)


def test_a_copied_prefix_is_a_request_of_its_own():
    model = build("mixtral")
    with finemoe.offload(model, 0.3, asynchronous=False) as engine, torch.no_grad():
        spy = Spy(engine)
        prefix = model(IDS, use_cache=True).past_key_values
        for _ in range(2):
            cache = copy.deepcopy(prefix)
            for _ in range(2):
                model(IDS[:, :1], past_key_values=cache)
        report = engine.report()
    assert spy.starts == [True, True, False, True, False]
    assert [one.num_decode_steps for one in report.requests] == [0, 2, 2]


def test_a_request_that_goes_on_after_a_reset_is_counted_from_there():
    model = build("mixtral")
    with finemoe.offload(model, 0.3, "on-demand") as engine, torch.no_grad():
        cache = model(IDS, use_cache=True).past_key_values
        engine.reset_counters()
        model(IDS[:, :1], past_key_values=cache)
        report = engine.report()
    assert (report.num_prefills, report.num_decode_steps, len(report.requests)) == (0, 1, 1)
    assert math.isnan(report.requests[0].ttft_s)
    assert report.requests[0].accesses == report.accesses


def test_a_reset_inside_a_forward_leaves_what_follows_to_its_request():
    model = build("mixtral")
    with finemoe.offload(model, 0.3, "on-demand") as engine, torch.no_grad():
        handle = model.model.layers[2].register_forward_pre_hook(lambda *_: engine.reset_counters())
        cache = model(IDS, use_cache=True).past_key_values
        handle.remove()
        first = engine.report()
        model(IDS[:, :1], past_key_values=cache)
        report = engine.report()
        engine.reset_counters()
        assert engine.report().requests == ()
    assert (first.layer_misses[:2], len(first.requests), len(report.requests)) == ((0, 0), 1, 1)
    for name in ("accesses", "hits", "misses", "demand_bytes", "num_decode_steps"):
        assert getattr(report.requests[0], name) == getattr(report, name)


def test_pieces_after_a_reset_are_not_timed():
    model = build("mixtral")
    prepare, num_prepared = model.prepare_inputs_for_generation, itertools.count()
    with finemoe.offload(model, 0.3, "on-demand") as engine:

        def reset_before_the_second(*args, **kwargs):
            if next(num_prepared) == 1:
                engine.reset_counters()
            return prepare(*args, **kwargs)

        model.prepare_inputs_for_generation = reset_before_the_second
        model.generate(IDS, **TOKENS, prefill_chunk_size=4)
        report = engine.report()
    assert (report.num_prefills, report.num_decode_steps, report.num_unknown_steps) == (0, 5, 2)
    assert math.isnan(report.ttft_s)


def batch_of(model, prompts, config):
    done = model.generate_batch(inputs=prompts, generation_config=GREEDY, continuous_batching_config=config)
    return [one.generated_tokens for one in done.values()]


GREEDY = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)
PROMPTS = [list(range(5, 13)), list(range(20, 26)), list(range(40, 51))]


@pytest.mark.parametrize(("max_batch_tokens", "num_unknown"), [(64, 0), (16, None), (10, None)])
def test_continuous_batching(max_batch_tokens, num_unknown):
    """Prompts that fit at once are one prefill; else prefill and decode come mixed, and prompts in pieces."""
    model = build("mixtral")
    config = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=max_batch_tokens)
    seen: list[tuple[list[int], list[int], int]] = []
    reference = copy.deepcopy(model)

    def note(module, args, kwargs):
        bounds = kwargs["cu_seq_lens_q"].tolist()
        lengths = [end - begin for begin, end in itertools.pairwise(bounds)]
        seen.append((lengths, kwargs["position_ids"][0, bounds[:-1]].tolist(), len(kwargs["logits_indices"].unique())))

    reference.register_forward_pre_hook(note, with_kwargs=True)
    expected = batch_of(reference, PROMPTS, config)
    with finemoe.offload(model, 0.3, asynchronous=False) as engine:
        spy = Spy(engine)
        assert batch_of(model, PROMPTS, config) == expected
        report = engine.report()
    assert len(spy.told) == len(seen)
    assert (report.num_prefills + report.num_decode_steps + report.num_unknown_steps) == len(seen)
    for told, (lengths, pasts, num_wanted) in zip(spy.told, seen, strict=True):
        if told.is_prefill:
            assert pasts == [0] * len(pasts)
            assert num_wanted == len(lengths)
        elif told.is_prefill is False:
            assert (set(lengths), 0 in pasts) == ({1}, False)
        assert told.starts_request == (0 in pasts)
        assert told.num_rows == sum(lengths)
    assert len(report.requests) == 1
    if num_unknown == 0:
        assert (report.num_prefills, report.num_decode_steps, report.num_unknown_steps) == (1, 5, 0)
        assert report.tpot_s > 0
    else:
        assert report.num_unknown_steps > 0
        assert None in spy.prefills


@pytest.mark.parametrize("num_new", [1, 2])
def test_a_prompt_whose_beginning_others_left_in_the_cache_starts(num_new):
    """What is fed of it may be a single token, as in a decode step."""
    model = build("mixtral")
    config = ContinuousBatchingConfig(num_blocks=16, page_size=16, max_batch_tokens=64)
    pages = list(range(5, 37))
    reference, fed = copy.deepcopy(model), []
    reference.register_forward_pre_hook(lambda module, args, kwargs: fed.append(kwargs["input_ids"].numel()), with_kwargs=True)

    def serve(one):
        tokens = []
        with one.continuous_batching_context_manager(generation_config=GREEDY, continuous_batching_config=config) as manager:
            for name, prompt in (("first", [*pages, 70, 71, 72]), ("second", [*pages, *range(80, 80 + num_new)])):
                manager.add_request(prompt, request_id=name)
                for result in manager.request_id_iter(name):
                    if result.is_finished():
                        tokens.append(result.generated_tokens)
                        break
        return tokens

    expected = serve(reference)
    assert fed == [35, 1, 1, 1, 1, 1, num_new, 1, 1, 1, 1, 1], "nothing was shared"
    with finemoe.offload(model, 0.3, asynchronous=False) as engine:
        spy = Spy(engine)
        assert serve(model) == expected
        report = engine.report()
    assert spy.prefills == [True, *[False] * 5, None, *[False] * 5]
    assert spy.starts == [True, *[False] * 5, True, *[False] * 5]
    assert (report.num_prefills, report.num_decode_steps, report.num_unknown_steps) == (1, 10, 1)


def test_a_layer_called_by_itself_is_of_no_kind():
    model = build("mixtral")
    with finemoe.offload(model, 0.3, asynchronous=False) as engine, torch.no_grad():
        spy = Spy(engine)
        model.model.layers[0].mlp(torch.zeros(1, 3, 32))
        report = engine.report()
    assert (report.num_prefills, report.num_decode_steps, report.num_unknown_steps) == (0, 0, 1)
    assert spy.prefills == [None]
    assert report.accesses > 0


def test_an_interrupt_inside_the_model_does_not_hide_what_its_inner_module_does_next():
    model = build("mixtral")

    def stop(*_):
        raise KeyboardInterrupt

    with finemoe.offload(model, 0.3, "on-demand") as engine, torch.no_grad():
        handle = model.model.layers[1].register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            model(**padded_batch())
        handle.remove()
        engine.reset_counters()
        model.model(IDS)
        report = engine.report()
    assert (report.num_prefills, report.num_unknown_steps, report.padding_accesses) == (1, 0, 0)


def test_caches_say_what_they_hold():
    class States:
        """As a cache of recurrent states alone."""

        def get_seq_length(self):
            raise ValueError("no tokens here")

        def has_previous_state(self):
            return True

    config = build("mixtral").config
    assert [length_of(one) for one in (DynamicCache(config=config), States(), object())] == [0, 1, None]
    assert isinstance(DynamicCache(config=config), Cache)


def test_a_report_says_in_words_what_was_not_timed():
    model = build("mixtral")
    with finemoe.offload(model, 0.3, "on-demand") as engine, torch.no_grad():
        model(IDS)
        plain = engine.report()
    assert "not timed" not in dict(plain.rows())
    mixed = dataclasses.replace(plain, num_unknown_steps=2)
    assert dict(mixed.rows())["not timed"].startswith("2 iterations")
