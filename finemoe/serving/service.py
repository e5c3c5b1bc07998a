"""Everything that serving a model needs, put together."""

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from finemoe.errors import FinemoeError
from finemoe.serving.app import make_app
from finemoe.serving.generating import OneAtATime
from finemoe.serving.limits import Limits
from finemoe.serving.running import RunningRequests
from finemoe.serving.served_model import ServedModel
from finemoe.serving.server import Server, bind

if TYPE_CHECKING:
    from torch import nn

    from finemoe.runtime.engine import Engine

_UNSTATED_CONTEXT = 1 << 20  # tokens, for models whose configuration states no limit


class Service:
    """A model with an endpoint, until it is closed. The engine stays its owner's.

    Args:
        model: an offloaded model. engine: its engine. tokenizer: its tokenizer.
        name: what clients call the model. aliases: other names for it.
        max_context: most tokens of prompt and answer together; None takes what the model was made for.
        max_new_tokens: most tokens of an answer, and what a request gets that asks for no number.
        api_key: what clients must send; None admits all.
    Raises:
        FinemoeError: the limits exceed what the model was made for.
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
    ) -> None:
        limits = Limits(
            context_tokens=_context_of(model, max_context),
            new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            vocabulary_size=model.get_input_embeddings().num_embeddings,  # type: ignore[operator]
        )
        self.running = RunningRequests()
        self._served = ServedModel(name, aliases, model, tokenizer)
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
        """Give up all requests, and wait for the one that runs to end."""
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
