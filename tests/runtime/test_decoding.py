"""How tokens are chosen: greedily unless asked otherwise, with what the checkpoint sets where it applies."""

import pytest
from transformers import GenerationConfig

from finemoe.cli.turns import decoding_of
from finemoe.errors import FinemoeError
from finemoe.runtime.decoding import Decoding

PUBLISHED = GenerationConfig(do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05)


@pytest.mark.parametrize(
    ("asked", "options", "text"),
    [
        ((None, None, None), {"do_sample": False}, "greedy, repetition_penalty 1.05"),
        ((False, None, None), {"do_sample": False}, "greedy, repetition_penalty 1.05"),
        ((None, 0.0, None), {"do_sample": False}, "greedy, repetition_penalty 1.05"),
        (
            (True, None, None),
            {"do_sample": True},
            "sampled, temperature 0.7, top_p 0.8, top_k 20, repetition_penalty 1.05, seed 3",
        ),
        (
            (None, 1.0, None),
            {"do_sample": True, "temperature": 1.0},
            "sampled, top_p 0.8, top_k 20, repetition_penalty 1.05, seed 3",
        ),
        (
            (None, None, 0.5),
            {"do_sample": True, "top_p": 0.5},
            "sampled, temperature 0.7, top_p 0.5, top_k 20, repetition_penalty 1.05, seed 3",
        ),
    ],
)
def test_what_is_asked_for_and_what_is_published(asked, options, text):
    decoding = decoding_of(*asked, seed=3)
    assert decoding.options() == options
    assert decoding.text(PUBLISHED) == text


def test_a_checkpoint_that_sets_nothing():
    assert Decoding().text(GenerationConfig()) == "greedy"
    assert Decoding(True, seed=1).text(GenerationConfig()) == "sampled, top_k 50, seed 1"
    usual = GenerationConfig._get_default_generation_params()
    assert (usual["top_k"], usual["temperature"], usual["top_p"]) == (50, 1.0, 1.0)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((True, 0.0, None), r"temperature is 0.0; it must be above 0"),
        ((True, -1.0, None), r"temperature is -1.0; it must be above 0"),
        ((True, float("nan"), None), r"temperature is nan; it must be above 0"),
        ((True, None, 0.0), r"top_p is 0.0; it must be in \(0, 1\]"),
        ((False, None, 0.5), "greedy decoding is asked for; give one or the other"),
    ],
)
def test_impossible_settings_are_refused(asked, message):
    with pytest.raises(FinemoeError, match=message):
        Decoding(*asked)
