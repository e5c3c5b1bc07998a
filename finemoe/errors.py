"""The one exception family that users of finemoe meet: a clear line that says what is wrong and what to do."""


class FinemoeError(ValueError):
    """Bad input or an unusable file; the message names what, where, and the remedy."""


class EngineError(RuntimeError):
    """A failure inside the running engine (link, matcher, router); raised in the caller's next step with its cause."""
