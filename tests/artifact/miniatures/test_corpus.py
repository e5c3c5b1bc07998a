"""The training text is deterministic and holds out every embedded prompt."""

import pytest

from finemoe.artifact.miniatures.corpus import conversations, documentation, held_out_prompts, training_texts
from finemoe.artifact.miniatures.prompts import make_prompts
from finemoe.workloads import GENRES

pytestmark = pytest.mark.timeout(300)  # the whole corpus is read


def test_conversations_are_deterministic():
    assert conversations(60, seed=3) == conversations(60, seed=3)
    assert conversations(60, seed=3) != conversations(60, seed=4)


def test_no_conversation_contains_an_embedded_prompt():
    prompts = [row["prompt"] for genre in GENRES for row in make_prompts(genre)]
    assert held_out_prompts() == frozenset(prompts)
    texts = "\0".join(conversations(4000, seed=1))
    assert not [prompt for prompt in prompts if f"\0{prompt}" in f"\0{texts}"]


def test_documentation_is_that_of_the_interpreter():
    texts = documentation()
    assert len(texts) == len(set(texts)) > 1000
    assert texts == documentation()


def test_held_out_texts_are_not_trained_on():
    training, held_out = training_texts(num_conversations=400, documentation_repeats=2)
    assert all(held_out.values())
    assert not set().union(*held_out.values()) & set(training)
    assert (training, held_out) == training_texts(num_conversations=400, documentation_repeats=2)
