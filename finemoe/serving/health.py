"""Whether the engine can serve the next request."""

from typing import TYPE_CHECKING

from finemoe.errors import first_line

if TYPE_CHECKING:
    from finemoe.runtime.engine import Engine


def engine_failure(engine: "Engine") -> str:
    """Why the engine can serve no request; empty if it can."""
    if engine.session.is_closed:
        return "the engine is closed"
    try:
        engine.parts.matcher.check()
        engine.memories.check()
    except Exception as error:  # an eviction rule may have raised anything
        return first_line(error)
    return ""
