"""Generates for many requests at once, in Transformers' continuous batches, and takes those out whose clients are gone."""

import asyncio
import contextlib
import copy
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import ContinuousBatchingConfig
from transformers.cli.serving.utils import BaseGenerateManager, CBStreamer, _StreamError
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager, OutputRouter
from transformers.generation.continuous_batching.requests import GenerationOutput

from finemoe.errors import EngineError, FinemoeError, first_line
from finemoe.serving.fields import require_greedy
from finemoe.serving.limits import Limits
from finemoe.serving.refusals import Cancelled
from finemoe.serving.running import CURRENT, RunningRequest

if TYPE_CHECKING:
    from torch import nn

_LOGGER = logging.getLogger("finemoe.serving")
_PAGE_TOKENS = 64  # a request occupies a multiple of this
_STEP_TOKENS = 2048  # most tokens of a step; a mask has this many rows, and a column for each token of the batch
_MOST_REQUESTS = 64  # in a step; others wait


class InBatches(BaseGenerateManager):
    """Greedy generation for all requests together: each step computes one token, or a part of the prompt, of every request.

    A step demands each expert once, however many requests select it.

    Args:
        model: the offloaded model.
        limits: how long prompts and answers may be.
        batch_tokens: most tokens of prompts and answers in the batch; memory for their keys and values is reserved.
    Raises:
        FinemoeError: the model cannot generate in batches, or the keys and values do not fit.
    """

    def __init__(self, model: "nn.Module", limits: Limits, batch_tokens: int) -> None:
        self._limits = limits
        self._answers: dict[str, _Answer] = {}  # of requests that are not over, by their id
        self._batch = _started(model, batch_tokens, router := _Router())
        router.deliver_to = self._deliver
        self._hook = model.register_forward_pre_hook(self._note_step)

    def generate_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str, response_parser: Any = None
    ) -> tuple[asyncio.Queue, Any]:
        """Start a streamed answer; see the base class."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Any]()
        tokenizer = processor.backend_tokenizer
        streamer = CBStreamer(self._batch, request_id, tokenizer, loop, queue, response_parser)
        self._submit(_Answer(CURRENT.get(), streamer, queue), inputs["input_ids"], gen_config)
        return queue, streamer

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str
    ) -> tuple[str, int, list[int]]:
        """Generate a whole answer; see the base class."""
        answer = _Answer(CURRENT.get())
        self._submit(answer, inputs["input_ids"], gen_config)
        tokens = await asyncio.wrap_future(answer.tokens)
        return processor.decode(tokens, skip_special_tokens=True), len(inputs["input_ids"]), tokens

    def stop(self) -> None:
        """End the thread after the step that runs, free the keys and values, and leave the model as it was."""
        self._batch.stop(hard_stop=True)
        self._hook.remove()

    def _submit(self, answer: "_Answer", prompt: list[int], config: Any) -> None:
        request = answer.request
        require_greedy(request.options)
        self._limits.apply(request, len(prompt), config)
        self._answers[request.id] = answer
        request.generation, request.on_cancel = answer.tokens, partial(self._drop, request)
        request.has_begun = True
        try:
            request.require_wanted()
            self._add(request.id, prompt, config)
        except Exception as error:
            if self._answers.pop(request.id, None) is not None:
                answer.fail(error)
            raise

    def _add(self, request_id: str, prompt: list[int], config: Any) -> None:
        status = self._batch.background_thread_status
        if status.fatal_error is not None:  # the engine may be able to go on, so the batch starts anew
            self._batch.join(time.perf_counter())
            self._batch.start()
        self._batch.add_request(list(prompt), request_id, config.max_new_tokens, streaming=True, eos_token_id=config.eos_token_id)
        if status.can_accept_new_requests() is not None:  # then it may have ended before it saw this request
            raise EngineError("the batch ended; ask again")

    def _drop(self, request: RunningRequest, reason: str) -> None:
        """Take a request out of the batch before the next step."""
        answer = self._answers.pop(request.id, None)
        if answer is not None:
            self._batch.cancel_request(request.id)
            answer.fail(Cancelled(reason))

    def _deliver(self, output: GenerationOutput) -> None:
        """Pass on what a step gave a request; called in the generating thread."""
        name = output.request_id
        answer = self._answers.get(name)
        if answer is None:
            if not output.is_finished():  # it was cancelled before the batch knew it
                self._batch.cancel_request(name)
            return
        if output.is_finished() and self._answers.pop(name, None) is None:
            return
        if output.error is not None:
            error = EngineError(output.error)
            _LOGGER.error("request %s failed: %s", name, first_line(error))
            answer.fail(error)
        else:
            answer.take(output)

    def _note_step(self, *_: Any) -> None:
        """Note which requests compute, before each step."""
        processor = self._batch.batch_processor
        for name in list(processor.scheduler.active_requests) if processor is not None else ():
            if (answer := self._answers.get(name)) is not None:
                answer.request.is_computing = answer.request.has_run = True


class _Answer:
    """What becomes of a request in the batch: its tokens as they come, or why there are no more.

    Args:
        request: the request.
        streamer: makes text of its tokens; None for a whole answer. queue: takes the text.
    Attributes:
        tokens: all tokens, once the request is over.
    """

    def __init__(self, request: RunningRequest, streamer: Any = None, queue: Any = None) -> None:
        self.request, self.tokens = request, Future[list[int]]()
        self.tokens.set_running_or_notify_cancel()  # from now on nobody who waits for it can cancel it
        self._streamer, self._queue = streamer, queue
        self._loop = asyncio.get_running_loop()

    def take(self, output: GenerationOutput) -> None:
        """Count new tokens and pass them on; called in the generating thread."""
        is_over = output.is_finished()
        self.request.note_tokens(len(output.generated_tokens) - self.request.generated_tokens)
        if self._streamer is not None:
            self._call(self._write, output, is_over)
        if is_over:
            self.request.is_computing = False
            self.tokens.set_result(output.generated_tokens)

    def fail(self, error: Exception) -> None:
        """End the answer with an error; called in any thread."""
        self.request.is_computing, self.request.failure = False, error
        if self._streamer is not None:
            self._call(self._queue.put_nowait, _StreamError(str(error)))
        self.tokens.set_exception(error)

    def _write(self, output: GenerationOutput, is_over: bool) -> None:
        try:
            self._streamer.put(output)
            if is_over:
                self._streamer.end()
        except Exception as error:  # of a tokenizer or a parser
            self.request.failure = error
            self._queue.put_nowait(_StreamError(str(error)))

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the server has ended and its clients are gone
            self._loop.call_soon_threadsafe(function, *arguments)


class _Router(OutputRouter):
    """Gives every output of the batch to a function, in the generating thread.

    Transformers' own keeps something of each request that was cancelled.

    Attributes:
        deliver_to: the function.
    """

    deliver_to: Callable[[GenerationOutput], None]

    def deliver(self, output: GenerationOutput) -> None:
        """Pass on an output."""
        self.deliver_to(output)

    def deliver_batch(self, outputs: list[GenerationOutput]) -> None:
        """Pass on the outputs of a step."""
        for output in outputs:
            self.deliver_to(output)


def _started(model: Any, batch_tokens: int, router: _Router) -> ContinuousBatchingManager:
    """A batch that waits for requests, after a trial: some models run in batches only as long as nothing is asked."""
    config = copy.deepcopy(model.generation_config)
    config.update(do_sample=False, temperature=None, top_p=None, top_k=None, num_return_sequences=1)
    memory = ContinuousBatchingConfig(
        page_size=_PAGE_TOKENS,
        num_blocks=-(-batch_tokens // _PAGE_TOKENS) + 2,  # a model with sliding windows has two kinds of pages
        max_batch_tokens=min(_STEP_TOKENS, batch_tokens),
        max_requests_per_batch=_MOST_REQUESTS,
        allow_block_sharing=False,  # every prompt is computed, so the counts of a request do not depend on earlier ones
        use_async_batching=False,
        use_cuda_graph=False,
        auto_switch_to_flash=False,  # another attention rounds differently from `generate`
        drop_unsupported_processors=False,  # they are refused
    )
    try:
        batch = model.init_continuous_batching(generation_config=config, continuous_batching_config=memory)
    except (AttributeError, NotImplementedError, ValueError) as error:
        raise _refusal(model, error, batch_tokens) from error
    batch.output_router = router
    kept = [one for one in batch.logit_processor.logits_processor if not getattr(one, "supports_continuous_batching", False)]
    if kept:
        raise FinemoeError(
            f"--batched: this model's generation_config asks for {type(kept[0]).__name__}, which batches cannot do; "
            "leave out --batched, or remove it from generation_config.json"
        )
    batch.start()
    status = batch.background_thread_status
    while batch.batch_processor is None and status.fatal_error is None:
        time.sleep(0.005)
    if status.fatal_error is not None:
        batch.stop()
        raise _refusal(model, status.fatal_error, batch_tokens) from status.fatal_error
    trial = Future[GenerationOutput]()
    router.deliver_to = trial.set_result
    batch.add_request([0, 0], max_new_tokens=1)
    if (failure := trial.result().error) is not None:
        batch.stop(hard_stop=True)
        raise _refusal(model, EngineError(failure), batch_tokens)
    return batch


def _refusal(model: Any, error: Exception, batch_tokens: int) -> FinemoeError:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        needed = f"keys and values of {batch_tokens:,} tokens need more memory than is free"
        return FinemoeError(f"--batched: {needed}; give fewer --batch-tokens, or less --expert-memory")
    return FinemoeError(f"--batched: {type(model).__name__} cannot generate in batches: {first_line(error)}; leave out --batched")
