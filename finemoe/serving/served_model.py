"""The one model that the server has."""

import inspect
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.cli.serving.model_manager import ModelManager

from finemoe.runtime.plain_template import with_template
from finemoe.serving.refusals import Refusal

if TYPE_CHECKING:
    from torch import nn


class ServedModel(ModelManager):
    """Gives Transformers' handlers the model and its tokenizer, and nothing else.

    Args:
        name: what `/v1/models` calls it. aliases: other names that requests may use.
        model: the offloaded model. tokenizer: its tokenizer; without a chat template it gets a plain one.
    Attributes:
        has_own_template: whether the tokenizer came with a chat template.
    """

    def __init__(self, name: str, aliases: Iterable[str], model: "nn.Module", tokenizer: Any) -> None:
        super().__init__()
        self.force_model = name
        self._names = {name, *aliases}
        self._model, self._tokenizer = model, tokenizer
        self._created = int(time.time())
        self.has_own_template = with_template(tokenizer)
        accepted = inspect.signature(type(model).forward).parameters
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name in accepted]

    def load_model_and_processor(self, *_: Any, **__: Any) -> tuple[Any, Any]:
        """The model and its tokenizer."""
        return self._model, self._tokenizer

    def process_model_name(self, model_id: str) -> str:  # type: ignore[override]
        """The name that answers bear: the model's, without a revision."""
        return model_id

    def get_gen_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:  # type: ignore[override]
        """The list that `/v1/models` returns."""
        return [{"id": self.force_model, "object": "model", "created": self._created, "owned_by": "finemoe"}]

    def require_served(self, name: str | None) -> None:
        """Refuse a request for another model; None is this one.

        Raises:
            Refusal: it has another name.
        """
        if name is not None and name not in self._names:
            raise Refusal(
                f"this server has no model {name!r}, only {self.force_model!r}", 404, param="model", code="model_not_found"
            )


def names_of(source: str) -> tuple[str, list[str]]:
    """What a model is called that was given as a name, a path or a hub id, and what else requests may call it."""
    path = Path(source)
    name = path.name if path.exists() and path.name else source
    return name, [source]
