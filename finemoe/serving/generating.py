"""Generates for one request at a time, in a thread of its own, and stops when the client is gone."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.cli.serving.utils import BaseGenerateManager, GenerateManager, GenerationState

from finemoe.errors import EngineError, FinemoeError, first_line
from finemoe.models.layers import MoELayer
from finemoe.runtime.generation import refusals_in_one_line
from finemoe.serving.limits import Limits
from finemoe.serving.refusals import Cancelled
from finemoe.serving.running import CURRENT, RunningRequest
from finemoe.serving.stops import WithoutStops, before_stop

if TYPE_CHECKING:
    from torch import nn

_LOGGER = logging.getLogger("finemoe.serving")


class OneAtATime(GenerateManager):
    """Transformers' sequential generation, which waits for its turn, can be given up, and obeys the server's limits.

    Args:
        model: the offloaded model.
        layers: its MoE layers; between them a request is given up.
        limits: how long prompts and answers may be.
    """

    def __init__(self, model: "nn.Module", layers: list[MoELayer], limits: Limits) -> None:
        # The base class would start a thread that nothing can end; this one ends with `stop`.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="finemoe-generate")
        self._limits = limits
        self._turn: RunningRequest | None = None
        self._hooks = _call_before_each(layers, model, self._require_wanted)

    def generate_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str, response_parser: Any = None
    ) -> tuple[Any, Any]:
        """Start a streamed answer; see the base class."""
        turn = self._accepted(model, inputs, gen_config)
        queue, streamer = super().generate_streaming(turn, processor, inputs, gen_config, request_id, response_parser)
        stops = CURRENT.get().stops
        return (WithoutStops(queue, stops) if stops else queue), streamer

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str
    ) -> tuple[str, int, Any]:
        """Generate a whole answer; see the base class."""
        turn = self._accepted(model, inputs, gen_config)
        text, num_tokens, tokens = await super().generate_non_streaming(turn, processor, inputs, gen_config, request_id)
        return before_stop(text, CURRENT.get().stops), num_tokens, tokens

    def submit(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Future:
        """Run a function in the thread, after those before it, for the current request."""
        CURRENT.get().generation = future = self._executor.submit(fn, *args, **kwargs)
        return future

    def async_submit(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> asyncio.Future:
        """The same, awaitable."""
        return asyncio.wrap_future(self.submit(fn, *args, **kwargs))

    def stop(self) -> None:
        """End the thread after the request that runs, and leave the model as it was."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        for hook in self._hooks:
            hook.remove()

    def _accepted(self, model: Any, inputs: Any, gen_config: Any) -> Any:
        request = CURRENT.get()
        self._limits.apply(request, inputs["input_ids"].shape[-1], gen_config)
        request.has_begun = True
        return _Turn(model, request, self._begin)

    def _begin(self, request: RunningRequest | None) -> None:
        self._turn = request

    def _require_wanted(self, *_: Any) -> None:
        if self._turn is not None:
            self._turn.has_run = True
            self._turn.require_wanted()


class _Turn:
    """What Transformers' handlers call instead of the model: `generate`, for one request."""

    def __init__(self, model: Any, request: RunningRequest, begin: Callable[[RunningRequest | None], None]) -> None:
        self._model, self._request, self._begin = model, request, begin

    def generate(self, **arguments: Any) -> Any:
        """The tokens, as the model's own `generate` returns them.

        Raises:
            Cancelled: the request was given up.
        """
        request = self._request
        try:
            request.require_wanted()
            request.is_computing = True
            self._begin(request)
            if request.options.get("seed") is not None:
                torch.manual_seed(request.options["seed"])
            watch = StoppingCriteriaList([_Watch(request)])
            with refusals_in_one_line(self._model, lambda: request.has_run):
                return self._model.generate(**arguments, stopping_criteria=watch)
        except Exception as error:
            request.failure = error
            if not isinstance(error, Cancelled | FinemoeError):
                trace = None if isinstance(error, EngineError) else error
                _LOGGER.error("request %s failed: %s", request.id, first_line(error), exc_info=trace)
            raise
        finally:
            self._begin(None)
            request.is_computing = False


class _Watch(StoppingCriteria):
    """Counts tokens after every step; never ends a request by itself."""

    def __init__(self, request: RunningRequest) -> None:
        self._request, self._num_seen = request, request.prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self._request.note_tokens(input_ids.shape[-1] - self._num_seen)
        self._num_seen = input_ids.shape[-1]
        self._request.require_wanted()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class OneModel(GenerationState):
    """Gives every handler the same manager.

    Args:
        manager: generates for all of them.
    """

    def __init__(self, manager: BaseGenerateManager) -> None:
        super().__init__()
        self._manager = manager

    def use_continuous_batching(self, model: Any, modality: Any) -> bool:
        """Whether the manager takes prompts as lists of tokens, for a batch."""
        return not isinstance(self._manager, OneAtATime)

    def get_manager(self, model_id: str, use_cb: bool = False) -> BaseGenerateManager:
        """The manager."""
        return self._manager


def _call_before_each(layers: list[MoELayer], model: "nn.Module", function: Callable[..., None]) -> list[Any]:
    """Call a function before each module that holds an MoE layer; a prompt takes long, and may be given up within it."""
    names = {layer.name.rpartition(".")[0] for layer in layers}
    return [model.get_submodule(name).register_forward_pre_hook(function) for name in sorted(names)]
