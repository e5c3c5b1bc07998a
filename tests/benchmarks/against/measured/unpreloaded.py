"""Requests to a fresh engine whose slots would hold every expert, but into which nothing was preloaded."""

from typing import Any

import finemoe
from finemoe.runtime.loading import load_model

from .generating import Generation
from .history import store_of


class Measured:
    """Variants "eager", "on-demand", "finemoe" (over a history's store) and "finemoe online" (which begins with none).

    Args:
        model: a miniature; prompts, num_tokens: the requests; history: arguments of `recorded`.
    """

    def __init__(self, model: str, prompts: list[str], num_tokens: int, history: dict[str, Any]) -> None:
        self._model, tokenizer = load_model(model)
        self._generations = [Generation(self._model, tokenizer, prompt, num_tokens) for prompt in prompts]
        self._store = store_of(history)
        self.expected = self._serve()[0]
        for variant in ("on-demand", "finemoe", "finemoe online"):
            self.measure(variant)

    def measure(self, variant: str) -> dict[str, Any]:
        """Seconds a token of each request, as "VARIANT request N", and, as "VARIANT again", of the last one when it comes a third
        time, for which nothing that is demanded is to be loaded."""
        if variant == "eager":
            tokens, seconds, again = self._serve()
        else:
            policy, _, is_online = variant.partition(" ")
            with finemoe.offload(self._model, 1.0, policy, history=None if is_online else self._store):
                tokens, seconds, again = self._serve()
        values = {f"{variant} request {number}": value for number, value in enumerate(seconds, start=1)}
        return {"values": {**values, f"{variant} again": again}, "tokens": tokens}

    def _serve(self) -> tuple[list[list[int]], list[float], float]:
        found = [one.run() for one in self._generations]
        self._generations[-1].run()
        _, again_s = self._generations[-1].run()
        return [tokens for tokens, _ in found], [seconds for _, seconds in found], again_s

    def close(self) -> None:
        """Its engines are closed."""
