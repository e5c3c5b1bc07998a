"""Transformers' handlers of chats, texts and responses, which here read checked fields only."""

import inspect
from typing import Any, ClassVar

from pydantic import BaseModel
from transformers import PreTrainedTokenizerBase
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.response import ResponseHandler

from finemoe.errors import EngineError, FinemoeError, first_line
from finemoe.serving.fields import ChatFields, CompletionFields, ResponseFields, checked
from finemoe.serving.limits import LENGTHS
from finemoe.serving.refusals import Cancelled, Refusal, refusal_of
from finemoe.serving.running import CURRENT
from finemoe.serving.stops import before_stop

_OURS = frozenset({"temperature", "top_p", "seed", *LENGTHS})  # applied when the request's turn comes
_OF_TEMPLATES = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)


class _Checked:
    """Checks the body before the handler reads it."""

    fields: ClassVar[type[BaseModel]]
    model_manager: Any

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
        """Answer a request.

        Raises:
            Refusal: the request is not served.
        """
        request = CURRENT.get()
        request.options = options = checked(body, self.fields)
        self.model_manager.require_served(options.get("model"))
        _require_variables(options.get("chat_template_kwargs", {}))
        kept = {name: value for name, value in options.items() if name not in _OURS}
        kept["stream"] = bool(options.get("stream"))  # for responses, the base class streams unless it is told
        kept["model"] = self.model_manager.force_model
        try:
            return await super().handle_request(kept, request.id)  # type: ignore[misc]
        except (Cancelled, EngineError, FinemoeError, Refusal):
            raise
        except Exception as error:
            if request.has_begun:  # nothing but this request is lost
                raise refusal_of(error, is_engine_usable=True) from error
            raise Refusal(f"no prompt can be made of this request: {first_line(error)}") from error


class Chats(_Checked, ChatCompletionHandler):
    """`/v1/chat/completions`."""

    fields = ChatFields

    def _build_completion(self, request_id: str, content: str, *arguments: Any, **more: Any) -> dict[str, Any]:
        """The answer, whose text the base class may have made of the tokens anew."""
        return super()._build_completion(request_id, before_stop(content, CURRENT.get().stops), *arguments, **more)


class Completions(_Checked, CompletionHandler):
    """`/v1/completions`."""

    fields = CompletionFields


class Responses(_Checked, ResponseHandler):
    """`/v1/responses`."""

    fields = ResponseFields


def _require_variables(values: dict[str, Any]) -> None:
    """Refuse what would change how the template is applied, such as another template."""
    wrong = sorted(values.keys() & _OF_TEMPLATES)
    if wrong:
        raise Refusal(f"chat_template_kwargs: {wrong[0]} is not a variable of a template", param="chat_template_kwargs")
