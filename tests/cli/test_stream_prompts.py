"""`--stream-prompts-from`: a number of tokens or "off"; live commands have the library's default, replays none."""

import inspect

import pytest

from finemoe.cli.options import streamed_from
from finemoe.cli.replay_command import replay
from finemoe.cli.run_command import run
from finemoe.cli.serve_command import serve
from finemoe.errors import FinemoeError
from finemoe.runtime.options import STREAM_PROMPTS_FROM


@pytest.mark.parametrize(("command", "expected"), [(run, STREAM_PROMPTS_FROM), (serve, STREAM_PROMPTS_FROM), (replay, None)])
def test_defaults_are_those_of_the_library(command, expected):
    assert streamed_from(inspect.signature(command).parameters["stream_prompts_from"].default) == expected


def test_a_number_of_tokens_is_taken():
    assert streamed_from("1") == 1


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "on", "", "Off"])
def test_anything_else_is_refused(text):
    with pytest.raises(FinemoeError, match=r"--stream-prompts-from .*: give a number of tokens, at least 1, or 'off'"):
        streamed_from(text)
