"""The configuration of the model that a command names, from the hub or from the project, and the sizes that follow from it."""

from typing import TYPE_CHECKING

import typer

from finemoe.cli.models import is_hub_id

if TYPE_CHECKING:
    from finemoe.simulation.cost import ModelSize


def config_for(model: str) -> str:
    """See `models.published.config_source`; says on stderr if an included configuration stands in for the hub's.

    Raises:
        FinemoeError: there is no such model.
    """
    from finemoe.models.published import config_source

    return config_source(model, say=lambda text: typer.echo(f"note: {text}", err=True))


def sizes_for(model: str | None, mix: str | None) -> "str | ModelSize | None":
    """What `--model` and `--gguf` mean where only sizes count: sizes if a GGUF file or a mix is named, else a model that the
    library finds.

    Raises:
        FinemoeError: there is no such model, or a mix is named without one.
    """
    from finemoe.errors import FinemoeError
    from finemoe.runtime.gguf_names import gguf_path
    from finemoe.simulation.cost import PUBLISHED

    if model is None:
        if mix is not None:
            raise FinemoeError("--gguf counts the experts of --model; give both")
        return None
    file = gguf_path(model)
    if mix is None and file is None:
        return config_for(model) if is_hub_id(model) else model
    if mix is not None and file is not None:
        raise FinemoeError(f"--gguf counts the experts of a configuration, and {model} is a GGUF file; leave it out")
    from finemoe.planning.loaded import loaded_models

    return loaded_models(model, str(file or config_for(PUBLISHED.get(model, model))), mix=mix)[0].size
