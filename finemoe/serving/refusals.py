"""Errors as an OpenAI client reads them: `{"error": {"message", "type", "param", "code"}}` with an HTTP status."""

from typing import Any

from finemoe.errors import EngineError, FinemoeError, first_line

INVALID, SERVER = "invalid_request_error", "server_error"  # OpenAI's types


class Refusal(Exception):
    """A request that is not served.

    Args:
        message: what is wrong, and what to do.
        status: the HTTP status.
        param: the field of the request that is wrong; None if no single one is.
        code: OpenAI's short name of the error, if it has one.
    """

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = SERVER if self.status >= 500 else INVALID
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class Cancelled(Exception):
    """Raised inside `generate` to end a request whose client hung up, or which the stopping server gives up."""


def refusal_of(error: Exception, is_engine_usable: bool) -> Refusal:
    """What a client is told about an error.

    Args:
        error: what was raised.
        is_engine_usable: whether the next request may succeed.
    """
    if isinstance(error, Refusal):
        return error
    if isinstance(error, Cancelled):
        return Refusal(str(error), 503, code="cancelled")
    if isinstance(error, FinemoeError):
        return Refusal(first_line(error))
    if isinstance(error, EngineError) and not is_engine_usable:
        return Refusal(first_line(error), 503, code="engine_failed")
    return Refusal(f"generation failed: {first_line(error)}", 500, code="generation_failed")
