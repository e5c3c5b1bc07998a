"""Everything that serving a model needs, put together."""

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from finemoe.errors import FinemoeError
from finemoe.serving.app import make_app
from finemoe.serving.batching import InBatches
from finemoe.serving.generating import OneAtATime
from finemoe.serving.limits import Limits
from finemoe.serving.running import RunningRequests
from finemoe.serving.served_model import ServedModel
from finemoe.serving.server import Server, bind

if TYPE_CHECKING:
    from torch import nn

    from finemoe.runtime.engine import Engine

_UNSTATED_CONTEXT = 1 << 20  # tokens, for models whose configuration states no limit
_BATCH_TOKENS, _CONTEXTS_OF_A_BATCH = 1 << 14, 8


class Service:
    """A model with an endpoint, until it is closed. The engine stays its owner's.

    Args:
        model: an offloaded model. engine: its engine. tokenizer: its tokenizer.
        name: what clients call the model. aliases: other names for it.
        max_context: most tokens of prompt and answer together; None takes what the model was made for.
        max_new_tokens: most tokens of an answer, and what a request gets that asks for no number.
        api_key: what clients must send; None admits all.
        is_batched: whether requests are computed together, instead of one after the other; answers are then greedy.
        batch_tokens: most tokens of all prompts and answers in the batch; None takes eight times the context, at most 16,384
            unless `max_context` is more. The context is at most this.
    Attributes:
        batch_tokens: the same; 0 if requests are not batched. context_tokens: most tokens of prompt and answer together.
    Raises:
        FinemoeError: the limits exceed what the model was made for, or it cannot generate in batches.
    """

    def __init__(
        self,
        model: "nn.Module",
        engine: "Engine",
        tokenizer: Any,
        name: str,
        aliases: Iterable[str] = (),
        max_context: int | None = None,
        max_new_tokens: int = 1024,
        api_key: str | None = None,
        is_batched: bool = False,
        batch_tokens: int | None = None,
    ) -> None:
        context = _context_of(model, max_context)
        self.batch_tokens = _batch_of(batch_tokens, context, max_context) if is_batched else 0
        self.context_tokens = min(context, self.batch_tokens or context)
        limits = Limits(
            context_tokens=self.context_tokens,
            new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            vocabulary_size=model.get_input_embeddings().num_embeddings,  # type: ignore[operator]
        )
        self.running = RunningRequests()
        self._served = ServedModel(name, aliases, model, tokenizer)
        self._manager: InBatches | OneAtATime
        if is_batched:
            self._manager = InBatches(model, limits, self.batch_tokens)
            engine.reset_counters()  # of its trial
        else:
            self._manager = OneAtATime(model, engine.layers, limits)
        self.app = make_app(self._served, self._manager, engine, self.running, api_key)

    @property
    def has_own_template(self) -> bool:
        """Whether the model came with a chat template."""
        return self._served.has_own_template

    def server(self, when_ready: Callable[[], None], log_level: str = "warning") -> Server:
        """A server of this service; run it with sockets of `bind`."""
        return Server(self.app, self.running, when_ready, log_level)

    def close(self) -> None:
        """Give up all requests, and wait for what runs to end."""
        self.running.cancel_all("the server has stopped")
        self._manager.stop()

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def require_free(host: str, port: int) -> None:
    """Refuse a port before a model is loaded for it.

    Raises:
        FinemoeError: see `bind`.
    """
    for one in bind(host, port):
        one.close()


def _context_of(model: "nn.Module", wanted: int | None) -> int:
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)  # type: ignore[union-attr, operator]
    if wanted is not None and most is not None and wanted > most:
        raise FinemoeError(f"--max-context {wanted}: the model was made for {most} tokens; give at most that")
    return int(wanted or most or _UNSTATED_CONTEXT)


def _batch_of(wanted: int | None, context: int, max_context: int | None) -> int:
    if wanted is None:
        return max(max_context or 0, min(_CONTEXTS_OF_A_BATCH * context, _BATCH_TOKENS))
    if max_context is not None and wanted < max_context:
        raise FinemoeError(f"--batch-tokens {wanted}: fewer than --max-context {max_context}; a request must fit the batch")
    return wanted
