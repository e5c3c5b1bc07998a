"""What ends a command: one line with options as typed, and exit codes."""

import errno

import pytest
import typer

from finemoe.cli.messages import Interrupted, as_typed, command, writing
from finemoe.errors import FinemoeError


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("no lookahead at stride 1; record it with lookahead=(1,)", "no lookahead at stride 1; record it with --lookahead 1"),
        ("record it with lookahead=(1, 3)", "record it with --lookahead 1 --lookahead 3"),
        (
            "lookahead is [40]; give strides as ascending whole numbers from 1, such as (1, 2, 3), below the number, 32",
            "--lookahead is 40; give strides as ascending whole numbers from 1, each by its own --lookahead, below the "
            "number, 32",
        ),
        ("host_memory: 'lots' is not a byte count", "--host-memory: 'lots' is not a byte count"),
        ("whose sizes hardware= means", "whose sizes --hardware means"),
        ("name it: model='config.json', a folder", "name it: --model config.json, a folder"),
        ("prefetch_distance is 9, must lie in 1..4", "--prefetch-distance is 9, must lie in 1..4"),
        ("omit expert_format='fp8'", "omit --expert-format fp8"),
        ("it runs only in finemoe.replay", "it runs only in `finemoe replay`"),
        ("devices is 3, but there are 2", "--devices is 3, but there are 2"),
        ("folder/top_k.trace: no such file", "folder/top_k.trace: no such file"),
        ("a class derived from finemoe.policies.base.Policy", "a class derived from finemoe.policies.base.Policy"),
        ("unknown model 'x'; known: a model's name", "unknown model 'x'; known: a model's name"),
    ],
)
def test_options_are_named_as_typed(message, expected):
    assert as_typed(message) == expected


def ending_with(error: BaseException):
    @command
    def failing() -> None:
        raise error

    return failing


def test_a_mistake_keeps_its_kind_and_gains_option_names():
    with pytest.raises(FinemoeError, match=r"^--devices is 0$"):
        ending_with(FinemoeError("devices is 0"))()


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space, or write elsewhere"),
        (errno.EDQUOT, "free some space, or write elsewhere"),
        (errno.EACCES, "check the path and its permissions"),
        (errno.EISDIR, "check the path and its permissions"),
    ],
)
def test_an_unusable_file_is_one_line(number, remedy):
    with pytest.raises(FinemoeError, match=f"^a.trace: .*; {remedy}$"):
        ending_with(OSError(number, "strerror", "a.trace"))()


def test_any_other_failure_keeps_its_traceback():
    with pytest.raises(OSError, match="strange") as caught:
        ending_with(OSError(errno.ECHILD, "strange"))()
    assert not isinstance(caught.value, FinemoeError)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyboardInterrupt(), "finemoe: interrupted; no file was written\n"),
        (Interrupted("3 of 9 requests are kept in a.trace"), "finemoe: interrupted; 3 of 9 requests are kept in a.trace\n"),
    ],
)
def test_an_interrupt_is_one_line_and_exit_code_130(error, line, capsys):
    with pytest.raises(typer.Exit) as caught:
        ending_with(error)()
    assert caught.value.exit_code == 130
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("cleaning", [None, AttributeError("no attribute")])
def test_a_full_disk_names_what_was_drawn(cleaning):
    """Also where the library fails once more when it cleans up."""

    def draw() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left")
        finally:
            if cleaning is not None:
                raise cleaning

    with pytest.raises(FinemoeError, match=r"^systems: No space left; free some space, or write elsewhere$"), writing("systems"):
        draw()
    with pytest.raises(AttributeError), writing("systems"):
        raise AttributeError
