"""The configuration of the model that a command names, from the hub or from the project."""

import typer


def config_for(model: str) -> str:
    """See `models.published.config_source`; says on stderr if an included configuration stands in for the hub's.

    Raises:
        FinemoeError: there is no such model.
    """
    from finemoe.models.published import config_source

    return config_source(model, say=lambda text: typer.echo(f"note: {text}", err=True))
