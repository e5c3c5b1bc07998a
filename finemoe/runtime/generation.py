"""How `generate` is called: its arguments other than the prompts, its outputs and its refusals."""

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from finemoe.errors import EngineError, FinemoeError, first_line

_ITS_REFUSALS = (ValueError, RuntimeError, ImportError, OSError)


def tokenizer_option(model: nn.Module, tokenizer: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer as an argument of `generate`, if the model's or the caller's options need it; models do not accept it."""
    configs = (options.get("generation_config"), model.generation_config)
    stops = [options.get("stop_strings"), *(getattr(config, "stop_strings", None) for config in configs)]
    is_needed = any(stop is not None for stop in stops) or options.get("assistant_tokenizer") is not None
    return {"tokenizer": tokenizer} if is_needed else {}


def sequences_of(output: Any) -> torch.Tensor:
    """The tokens in the output of `generate`, [R, W], for any of its return types."""
    tokens: torch.Tensor = output if isinstance(output, torch.Tensor) else output.sequences
    return tokens


@contextmanager
def refusals_in_one_line(model: nn.Module, has_begun: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Turn an error of `generate` into one line.

    Args:
        model: the model that generates.
        has_begun: whether the model has run; until then every error is about the options.
    Raises:
        FinemoeError: generate refuses its options or the model's generation_config, or fails, for the stated reason.
    """
    try:
        yield
    except (FinemoeError, EngineError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ENOSPC):
            raise  # an error of the text's destination, not of the model
        if has_begun() and not isinstance(error, _ITS_REFUSALS):
            raise
        verb = "fails" if has_begun() else "refuses this"
        raise FinemoeError(f"{type(model).__name__}.generate {verb}: {first_line(error)}") from error
