"""In every mode of generation, what `record` writes down is what a plain forward says of the very tokens a request ended with.

The plain forward is seen by PyTorch's own hooks (tests/runtime/recordings.py), and the tokens are those that plain `generate`
gives for the same prompts.
"""

import copy
import os
import threading

import numpy as np
import pytest
import torch
from transformers import CompileConfig, StoppingCriteria

import finemoe
from finemoe.errors import FinemoeError
from finemoe.traces import DECODE, PREFILL
from tests.runtime import families
from tests.runtime.models import build, half_right
from tests.runtime.recording_matrix import RIGHT, outcomes
from tests.runtime.recordings import MODES, PROMPTS, TOLERANCE, Characters, configured, differences, side_by_side

BY_CONFIG = [name for name, mode in MODES.items() if mode.by_config]
FEW = ("greedy, padded", "beams, padded", "prefill in pieces", "prompt lookup", "static cache, padded")
WAYS = [("mixtral", "arguments", name) for name in MODES]
WAYS += [("qwen2_moe", "generation_config", name) for name in BY_CONFIG]
WAYS += [("phimoe", "arguments", name) for name in FEW]
LONG = 8


def recorded(model, name: str, way: str, prompts=PROMPTS, **more):
    mode = MODES[name]
    torch.manual_seed(0)
    options = {"tokenizer": Characters(), "max_new_tokens": LONG, "batch_size": mode.batch_size} | more
    if way == "arguments":
        return finemoe.record(model, prompts, **options, **mode.options)
    with configured(model, mode.options):
        return finemoe.record(model, prompts, **options)


def requests_of(trace) -> list[list[int]]:
    return [trace.tokens[trace.rows_of(request)].tolist() for request in range(trace.num_requests)]


def generated_alone(model, prompt: str, **options) -> list[int]:
    """The tokens of one prompt that generates by itself, greedily: its end is the end."""
    tokens = torch.tensor([Characters().tokens(prompt)])
    mask = torch.ones_like(tokens)
    done = model.generate(
        tokens, attention_mask=mask, **{"do_sample": False, "max_new_tokens": LONG, "pad_token_id": 0} | options
    )
    return done[0].tolist()


@pytest.mark.parametrize(("family", "way", "name"), WAYS)
def test_recorded_routing_is_the_plain_forwards(family, way, name):
    model, mode = build(family), MODES[name]
    trace = recorded(model, name, way)
    assert trace.num_requests == mode.returned * len(PROMPTS)
    assert max(differences(model, trace)) < TOLERANCE
    table = model.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_allclose(trace.embeddings(), table[trace.tokens], atol=1e-3)
    for request, tokens in enumerate(requests_of(trace)):
        prompt = Characters().tokens(PROMPTS[request // mode.returned])
        assert tokens[: len(prompt)] == prompt
        assert len(tokens) == len(prompt) + LONG - 1
        phase = trace.phase[trace.rows_of(request)]
        assert (phase[: len(prompt)] == PREFILL).all()
        steps = np.unique(trace.step[trace.rows_of(request)])
        assert steps.tolist() == list(range(len(steps)))
        if "lookup" not in name:  # whose first forward feeds a draft beside the prompt
            assert (phase[len(prompt) :] == DECODE).all()


@pytest.mark.parametrize("name", [name for name, mode in MODES.items() if not mode.options.get("do_sample")])
def test_tokens_are_those_that_plain_generate_gives(name):
    model, mode = build("mixtral"), MODES[name]
    trace = recorded(model, name, "arguments")
    expected = []
    for begin in range(0, len(PROMPTS), mode.batch_size):
        batch, pads = side_by_side(PROMPTS[begin : begin + mode.batch_size])
        done = model.generate(**batch, max_new_tokens=LONG, **{"do_sample": False, **mode.options})
        done = done if isinstance(done, torch.Tensor) else done.sequences
        expected += [row[pads[number // mode.returned] : -1] for number, row in enumerate(done.tolist())]
    assert requests_of(trace) == expected


@pytest.mark.skipif(os.environ.get("FINEMOE_FAMILIES") != "all", reason="every family in every mode, with make families")
@pytest.mark.parametrize("family", families.family_names())
def test_every_family_is_recorded_rightly_or_refused(family):
    assert not [one for one in outcomes(family) if one.kind not in RIGHT]


# Where a request ends.


def greedy_tokens(model, prompt: str) -> list[int]:
    """The generated tokens of a prompt, without an end-of-sequence token."""
    return generated_alone(model, prompt)[len(prompt) :]


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"guidance_scale": 1.5}, {"prefill_chunk_size": 5}], ids=str)
@pytest.mark.parametrize("pad", [0, "eos"])
def test_a_row_of_a_batch_ends_early(options, pad):
    model = build("mixtral")
    ends = {"eos_token_id": [generated_alone(model, PROMPTS[0], **options)[len(PROMPTS[0]) + 2], 95]}
    alone = [generated_alone(model, prompt, **ends, **options) for prompt in PROMPTS]
    assert len(set(map(len, alone))) > 1  # one does end before the others
    tokenizer = Characters()
    tokenizer.pad_token_id = ends["eos_token_id"][0] if pad == "eos" else pad
    for by_config in (False, True):
        with configured(model, ends if by_config else {}):
            trace = finemoe.record(
                model,
                PROMPTS,
                tokenizer=tokenizer,
                max_new_tokens=LONG,
                batch_size=3,
                **({} if by_config else ends),
                **options,
            )
        assert requests_of(trace) == [row[:-1] for row in alone]
        assert max(differences(model, trace)) < TOLERANCE


class EndsAfter(StoppingCriteria):
    """A criterion of the caller's own: a row is done when it ends with a token."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] == self.token


class Strings(Characters):
    """Whose tokens are letters, so that stop strings can be found in them."""

    def get_vocab(self):
        return {chr(56 + token): token for token in range(96)}

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)

    def _convert_id_to_token(self, token):
        return chr(56 + token)

    def __call__(self, prompts, return_tensors="pt", padding=False, **_):
        if isinstance(prompts, str):  # a text that StopStringCriteria tries a tokenizer with
            return {"input_ids": self.tokens(prompts)}
        return super().__call__(prompts)


@pytest.mark.parametrize("by_config", [False, True], ids=["arguments", "generation_config"])
@pytest.mark.parametrize("mode", [{}, {"prompt_lookup_num_tokens": 3}, {"num_return_sequences": 2, "do_sample": True}], ids=str)
def test_stop_strings_end_a_row_without_an_end_token(mode, by_config):
    model, tokenizer = build("mixtral"), Strings()
    token = greedy_tokens(model, PROMPTS[0])[3]
    stop, size = {"stop_strings": [chr(56 + token)]}, 1 if "prompt_lookup_num_tokens" in mode else 3
    torch.manual_seed(0)
    options = {"tokenizer": tokenizer, "max_new_tokens": 30 if "do_sample" in mode else LONG, "batch_size": size}
    with configured(model, stop if by_config else {}):
        trace = finemoe.record(model, PROMPTS, **options, **({} if by_config else stop), **mode)
    assert max(differences(model, trace)) < TOLERANCE
    lengths = []
    for request, tokens in enumerate(requests_of(trace)):
        prompt = PROMPTS[request // mode.get("num_return_sequences", 1)]
        new = tokens[len(prompt) :]
        assert token not in new  # the token that ended it was not fed
        lengths.append(len(new) + 1)
        if not mode:
            expected = greedy_tokens(model, prompt)
            assert new == expected[: expected.index(token) if token in expected else LONG - 1]
    assert min(lengths) < options["max_new_tokens"]


def test_criteria_of_the_callers_own_end_a_row():
    model = build("mixtral")
    token = greedy_tokens(model, PROMPTS[2])[4]
    trace = finemoe.record(
        model, PROMPTS, tokenizer=Characters(), max_new_tokens=LONG, batch_size=3, stopping_criteria=[EndsAfter(token)]
    )
    for prompt, tokens in zip(PROMPTS, requests_of(trace), strict=True):
        expected = greedy_tokens(model, prompt)
        end = expected.index(token) if token in expected else LONG - 1
        assert tokens[len(prompt) :] == expected[:end]
    assert max(differences(model, trace)) < TOLERANCE


@pytest.mark.parametrize("by_config", [False, True], ids=["arguments", "generation_config"])
def test_lengths_at_least_and_at_most(by_config):
    model = build("mixtral")
    ends = {"eos_token_id": greedy_tokens(model, PROMPTS[0])[1]}
    options = ends | {"min_new_tokens": 5}
    alone = [generated_alone(model, prompt, **options, max_new_tokens=6) for prompt in PROMPTS]
    with configured(model, options if by_config else {}):
        trace = finemoe.record(
            model, PROMPTS, tokenizer=Characters(), max_new_tokens=6, batch_size=3, **({} if by_config else options)
        )
    assert requests_of(trace) == [row[:-1] for row in alone]
    assert max(differences(model, trace)) < TOLERANCE


def test_a_pad_token_that_is_generated_is_a_token():
    model = build("mixtral")
    tokenizer = Characters()
    tokenizer.pad_token_id = greedy_tokens(model, PROMPTS[1])[2]
    trace = finemoe.record(model, PROMPTS, tokenizer=tokenizer, max_new_tokens=LONG, batch_size=3)
    assert requests_of(trace) == [generated_alone(model, prompt)[:-1] for prompt in PROMPTS]
    assert max(differences(model, trace)) < TOLERANCE


@pytest.mark.parametrize("by_config", [False, True], ids=["arguments", "generation_config"])
def test_beams_end_where_each_of_them_ended(by_config):
    model = build("mixtral")
    end = model.generate(torch.tensor([Characters().tokens(PROMPTS[0])]), num_beams=4, max_new_tokens=4)[0, -2].item()
    options = {"num_beams": 4, "num_return_sequences": 4, "eos_token_id": end, "length_penalty": 0.5}
    tokens = torch.tensor([Characters().tokens(PROMPTS[0])])
    done = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=LONG, pad_token_id=0, **options)
    expected = []
    for row in done.tolist():
        new = row[len(PROMPTS[0]) :]
        expected.append(row[: len(PROMPTS[0]) + (new.index(end) if end in new else len(new) - 1)])
    assert len(set(map(len, expected))) > 1
    with configured(model, options if by_config else {}):
        trace = finemoe.record(model, PROMPTS[:1], tokenizer=Characters(), max_new_tokens=LONG, **({} if by_config else options))
    assert requests_of(trace) == expected
    assert max(differences(model, trace)) < TOLERANCE


# Drafts: of another model, of the prompt, and of the model itself.


def fed_and_recorded(model, prompts, **options):
    """The tokens of every forward of the model, counted by a hook of PyTorch's, and the trace."""
    fed = []
    handle = model.register_forward_pre_hook(lambda m, args, kwargs: fed.append(kwargs["input_ids"].numel()), with_kwargs=True)
    try:
        return fed, finemoe.record(model, prompts, tokenizer=Characters(), **options)
    finally:
        handle.remove()


@pytest.mark.parametrize("draft", ["another model", "the prompt", "the model itself", "its first layers"])
@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampling"])
def test_rejected_drafts_are_no_rows_and_accepted_ones_are(draft, sampled):
    model = build("mixtral")
    options = {
        "another model": {"assistant_model": half_right(model)},
        "the prompt": {"prompt_lookup_num_tokens": 4},
        "the model itself": {"assistant_model": model},
        "its first layers": {"assistant_early_exit": 2},
    }[draft]
    torch.manual_seed(2)
    length = 16
    fed, trace = fed_and_recorded(model, PROMPTS, max_new_tokens=length, do_sample=sampled, **options)
    assert max(differences(model, trace)) < TOLERANCE
    assert np.diff(trace.offsets).tolist() == [len(prompt) + length - 1 for prompt in PROMPTS]
    if not sampled:
        assert requests_of(trace) == [generated_alone(model, prompt, max_new_tokens=length)[:-1] for prompt in PROMPTS]
    num_steps = sum(len(np.unique(trace.step[trace.rows_of(request)])) for request in range(3))
    if draft in ("another model", "the model itself") or (draft == "the prompt" and not sampled):
        assert num_steps < 3 * length  # some were accepted: several tokens of one forward
    if draft in ("another model", "the prompt"):
        assert sum(fed) > trace.num_rows + len(PROMPTS)  # and some were not: fed, and neither rows nor a last token


def test_a_draft_beside_the_prompt_belongs_to_the_prefill():
    trace = finemoe.record(
        build("mixtral"), ["abcabcabcabc"], tokenizer=Characters(), max_new_tokens=6, assistant_model=build("mixtral")
    )
    first = trace.phase[trace.step == 0]
    assert (first == PREFILL).all()
    assert len(first) > len("abcabcabcabc")


# What else a generation may do.


def test_a_prefill_in_pieces_is_several_steps_of_prefill():
    trace = recorded(build("mixtral"), "prefill in pieces", "arguments", [PROMPTS[0]])
    assert trace.step.tolist() == [0] * 4 + [1] * 4 + [2] * 3 + list(range(3, 3 + LONG - 1))
    assert trace.phase.tolist() == [PREFILL] * 11 + [DECODE] * (LONG - 1)


def test_tokens_fed_again_are_recorded_once():
    model = build("mixtral")
    cached, again = recorded(model, "greedy", "arguments"), recorded(model, "cache off", "arguments")
    for name in ("tokens", "step", "phase", "offsets", "expert_ids"):
        np.testing.assert_array_equal(getattr(cached, name), getattr(again, name))


@pytest.mark.parametrize("name", ["cache off", "prompt lookup", "prefill in pieces", "static cache", "greedy, padded"])
def test_routers_applied_ahead_are_recorded_alike(name):
    model = build("qwen2_moe")
    plain_run, other = (recorded(model, one, "arguments", lookahead=(1, 3)) for one in ("greedy", name))
    np.testing.assert_array_equal(plain_run.tokens, other.tokens)
    for stride in (1, 3):
        np.testing.assert_allclose(plain_run.lookahead(slice(None), stride), other.lookahead(slice(None), stride), atol=TOLERANCE)


@pytest.mark.parametrize("name", ["greedy, padded", "cache off", "returned beams", "prompt lookup", "guidance, padded"])
def test_an_offloaded_model_records_alike(name):
    model = build("mixtral")
    expected = recorded(model, name, "arguments")
    with finemoe.offload(model, 0.3):
        found = recorded(model, name, "arguments")
    for array in ("tokens", "step", "phase", "probs", "expert_ids"):
        np.testing.assert_array_equal(getattr(expected, array), getattr(found, array))


@pytest.mark.parametrize("name", ["beams, padded", "returned beams"])
def test_beams_do_die_in_these_tests(name):
    """A returned beam comes of others' rows, and rows were fed that are none of a returned beam."""
    model, mode = build("mixtral"), MODES[name]
    batch, _ = side_by_side(PROMPTS[: mode.batch_size])
    done = model.generate(**batch, max_new_tokens=LONG, return_dict_in_generate=True, **{"do_sample": False, **mode.options})
    assert any(len(set(row)) > 1 for row in done.beam_indices.tolist())
    fed, trace = fed_and_recorded(
        model, PROMPTS[: mode.batch_size], max_new_tokens=LONG, batch_size=mode.batch_size, **mode.options
    )
    distinct = {tuple(tokens[: end + 1]) for tokens in requests_of(trace) for end in range(len(tokens))}
    assert sum(fed[1:]) > len(distinct) - sum(len(prompt) for prompt in PROMPTS[: mode.batch_size])


def test_rows_that_are_copies_keep_their_own():
    model = build("mixtral")
    alone = recorded(model, "greedy", "arguments", [PROMPTS[0]])
    twice = recorded(model, "greedy, padded", "arguments", [PROMPTS[0], PROMPTS[0], PROMPTS[0]])
    assert requests_of(twice) == 3 * requests_of(alone)
    assert max(differences(model, twice)) < TOLERANCE


@pytest.mark.parametrize("options", [{}, {"num_beams": 2, "num_return_sequences": 2}, {"use_cache": False}], ids=str)
def test_what_one_prompt_says_another_may_generate(options):
    """A prompt that goes on as the other one does: tokens that it generates are no part of its prefill."""
    model = build("mixtral")
    whole = generated_alone(model, PROMPTS[0], max_new_tokens=6, **options)
    prompts = [whole[:size] for size in (len(PROMPTS[0]), len(whole) - 3, len(whole) - 2)]

    class Continued(Characters):
        def __call__(self, texts, return_tensors="pt", padding=False):
            return {"input_ids": [prompts[int(text)] for text in texts]}

    trace = finemoe.record(model, ["0", "1", "2"], tokenizer=Continued(), max_new_tokens=6, batch_size=3, **options)
    assert max(differences(model, trace)) < TOLERANCE
    for request in range(trace.num_requests):
        size = len(prompts[request * 3 // trace.num_requests])
        assert trace.step[trace.rows_of(request)].tolist() == [0] * size + list(range(1, 6))
        assert trace.phase[trace.rows_of(request)].tolist() == [PREFILL] * size + [DECODE] * 5


def test_returned_sequences_are_requests_with_names_of_their_own():
    names = {"request_ids": np.array(["x", "y"]), "splits": iter(["history", "served"])}
    trace = finemoe.record(
        build("mixtral"), PROMPTS[:2], tokenizer=Characters(), max_new_tokens=3, num_beams=3, num_return_sequences=2, **names
    )
    assert trace.request_ids == ("x/0", "x/1", "y/0", "y/1")
    assert trace.splits == ("history", "history", "served", "served")


def test_greedy_unless_the_caller_says_otherwise():
    model = build("mixtral")
    greedy = recorded(model, "greedy", "arguments")
    with configured(model, {"do_sample": True, "temperature": 5.0}):
        assert requests_of(recorded(model, "greedy", "arguments")) == requests_of(greedy)
        config = copy.deepcopy(model.generation_config)
        assert requests_of(recorded(model, "greedy", "arguments", generation_config=config)) != requests_of(greedy)


def test_nothing_is_compiled(monkeypatch):
    model = build("mixtral")
    config = CompileConfig(backend="eager", mode=None)
    config._compile_all_devices = True
    monkeypatch.setattr(type(model), "get_compiled_call", lambda *_: pytest.fail("compiled"))
    trace = recorded(model, "static cache", "arguments", compile_config=config)
    assert max(differences(model, trace)) < TOLERANCE


def test_the_model_keeps_nothing_of_it():
    model = build("mixtral")
    before = set(model.__dict__), [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    recorded(model, "beams", "arguments")
    with pytest.raises(FinemoeError):
        recorded(model, "beams", "arguments", num_return_sequences=9)
    with pytest.raises(KeyboardInterrupt):
        recorded(model, "greedy", "arguments", stopping_criteria=[Interrupts()])
    assert (set(model.__dict__), [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]) == before


class Interrupts(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        raise KeyboardInterrupt


# Others that run the model meanwhile.


class Calls(StoppingCriteria):
    """A criterion that ends nothing and calls a function at every step."""

    def __init__(self, function):
        self.function = function

    def __call__(self, input_ids, scores, **kwargs):
        self.function()
        return torch.zeros(len(input_ids), dtype=torch.bool)


def in_another_thread(function):
    """What a function returned or raised there."""
    outcome = []

    def run():
        try:
            outcome.append(function())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return outcome[0]


@pytest.mark.parametrize("in_own_thread", [False, True])
@pytest.mark.parametrize("moment", ["before a forward", "between forwards"])
def test_forwards_that_are_no_steps_are_no_rows(moment, in_own_thread):
    """Over as many tokens as the step itself, so that counting would not tell them apart."""
    model = build("mixtral")
    expected = recorded(model, "greedy", "arguments", [PROMPTS[0]])
    other = torch.tensor([Characters().tokens(PROMPTS[0])[::-1]])
    running = []

    def run(*_):
        if not running:
            running.append(1)
            assert not isinstance((lambda call: call() if in_own_thread else in_another_thread(call))(forward), Exception)
            running.clear()

    def forward():
        with torch.no_grad():
            model.generate(other, max_new_tokens=2, pad_token_id=0)
            return model(other[:, :1])

    if moment == "between forwards":
        found = recorded(model, "greedy", "arguments", [PROMPTS[0]], stopping_criteria=[Calls(run)])
    else:
        handle = model.register_forward_pre_hook(run)
        try:
            if in_own_thread:
                with pytest.raises(FinemoeError, match="fed tokens that generate did not prepare"):
                    recorded(model, "greedy", "arguments", [PROMPTS[0]])
                return
            found = recorded(model, "greedy", "arguments", [PROMPTS[0]])
        finally:
            handle.remove()
    for array in ("tokens", "step", "phase", "probs", "expert_ids"):
        np.testing.assert_array_equal(getattr(expected, array), getattr(found, array))


def test_tokens_that_a_hook_exchanges_are_refused():
    model = build("mixtral")
    model.register_forward_pre_hook(
        lambda m, args, kwargs: (args, kwargs | {"input_ids": kwargs["input_ids"] + 1}), with_kwargs=True
    )
    with pytest.raises(FinemoeError, match="fed tokens that generate did not prepare"):
        recorded(model, "greedy", "arguments")


def test_two_threads_do_not_record_one_model():
    model = build("mixtral")
    own = set(model.__dict__)
    outcomes = []
    second = Calls(lambda: outcomes.append(in_another_thread(lambda: recorded(model, "greedy", "arguments"))))
    trace = recorded(model, "greedy", "arguments", [PROMPTS[0]], stopping_criteria=[second])
    assert {type(outcome) for outcome in outcomes} == {FinemoeError}
    assert "another thread is recording this model" in str(outcomes[0])
    assert max(differences(model, trace)) < TOLERANCE
    assert set(model.__dict__) == own
    assert in_another_thread(lambda: recorded(model, "greedy", "arguments")).num_requests == len(PROMPTS)


def test_a_recording_may_be_made_within_another():
    model = build("mixtral")
    inner = []
    within = Calls(lambda: inner.append(recorded(model, "greedy, padded", "arguments")) if not inner else None)
    outer = recorded(model, "greedy", "arguments", [PROMPTS[0]], stopping_criteria=[within])
    assert max(differences(model, outer) + differences(model, inner[0])) < TOLERANCE


# What is refused, in one line and before the work.


def forwards_of(model) -> list[int]:
    count: list[int] = []
    model.register_forward_pre_hook(lambda *_: count.append(1))
    return count


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_implementation": "paged"}, "continuous batching"),
        ({"input_ids": torch.ones(1, 2)}, "omit input_ids: record builds it"),
        ({"past_key_values": object()}, "omit past_key_values: record builds it"),
        ({"no_such_option": 1}, "generate refuses this: .*no_such_option"),
        ({"prompt_lookup_num_tokens": 2, "use_cache": False}, "generate refuses this"),
        ({"prefill_chunk_size": 2, "use_cache": False}, "Cannot use prefill chunking without a cache"),
        ({"num_beams": 2, "num_return_sequences": 3}, "generate refuses this"),
        ({"penalty_alpha": 0.5, "top_k": 4}, "generate refuses this"),
    ],
)
def test_what_generate_refuses_is_one_line_before_the_work(options, message):
    model = build("mixtral")
    count = forwards_of(model)
    with pytest.raises(FinemoeError, match=message) as caught:
        finemoe.record(model, PROMPTS, tokenizer=Characters(), max_new_tokens=3, **options)
    assert "\n" not in str(caught.value)
    assert not count


def test_several_rows_of_drafts_are_refused_before_the_work():
    model = build("mixtral")
    count = forwards_of(model)
    with pytest.raises(FinemoeError, match="batch_size = 1"):
        finemoe.record(model, PROMPTS, tokenizer=Characters(), max_new_tokens=3, batch_size=2, prompt_lookup_num_tokens=2)
    assert not count


def test_an_expert_listed_twice_is_refused_at_the_first_step():
    model = families.build("deepseek_v4")
    for name, buffer in model.named_buffers():
        if name.endswith("tid2eid"):
            buffer.zero_()
    count = forwards_of(model)
    with pytest.raises(FinemoeError, match="lists expert 0 twice for one token") as caught:
        finemoe.record(model, PROMPTS, tokenizer=Characters(), max_new_tokens=50)
    assert "\n" not in str(caught.value)
    assert len(count) == 1


def test_a_model_in_training_is_refused():
    model = build("phimoe").train()
    with pytest.raises(FinemoeError, match=r"training mode.*model.eval\(\)"):
        finemoe.record(model, PROMPTS, tokenizer=Characters(), max_new_tokens=2)


def test_a_model_without_generate_is_refused():
    with pytest.raises(FinemoeError, match="does not generate text"):
        finemoe.record(build("mixtral").model, PROMPTS, tokenizer=Characters(), max_new_tokens=2)


def test_layers_that_do_not_all_run_are_refused_at_the_first_step():
    model = build("mixtral")
    model.config.num_hidden_layers = 3
    count = forwards_of(model)
    with pytest.raises(FinemoeError, match="do not all run"):
        finemoe.record(model, PROMPTS, tokenizer=Characters(), max_new_tokens=50)
    assert len(count) == 1


def test_a_generate_of_its_own_is_refused_at_the_first_step():
    model = build("mixtral")
    count = forwards_of(model)
    model.generate = lambda input_ids, **_: model(input_ids=input_ids).logits.argmax(-1)
    with pytest.raises(FinemoeError, match="record cannot follow how MixtralForCausalLM generates"):
        finemoe.record(model, PROMPTS, tokenizer=Characters(), max_new_tokens=50)
    assert len(count) == 1


def test_prompts_that_generate_changes_are_refused():
    model = build("mixtral")
    generate = model.generate
    model.generate = lambda input_ids, **options: generate(input_ids=input_ids.roll(1), **options)
    with pytest.raises(FinemoeError, match="changes the prompts' tokens"):
        finemoe.record(model, PROMPTS, tokenizer=Characters(), max_new_tokens=2)


def test_sequences_changed_afterwards_are_refused():
    model = build("mixtral")
    generate = model.generate

    def changed(**options):
        output = generate(**options)
        output.sequences[0, -3] += 1
        return output

    model.generate = changed
    with pytest.raises(FinemoeError, match="was never fed after the tokens before it"):
        finemoe.record(model, PROMPTS, tokenizer=Characters(), max_new_tokens=5)
