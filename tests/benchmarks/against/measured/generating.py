"""Greedy generation of a fixed number of tokens, with the time of each."""

import time
from typing import Any

import numpy as np


class Generation:
    """Generates a fixed number of tokens for a prompt, greedily.

    Args:
        num_tokens: at least 2; the first comes from the prefill, which is not counted.
    """

    def __init__(self, model: Any, tokenizer: Any, prompt: str, num_tokens: int) -> None:
        self._model, self._inputs = model, tokenizer(prompt, return_tensors="pt")
        self._options = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "do_sample": False}
        self._options["pad_token_id"] = tokenizer.pad_token_id

    def run(self) -> tuple[list[int], float]:
        """The tokens, and the seconds of each after the first."""
        times_s: list[float] = []

        def note(_: Any, scores: Any) -> Any:
            times_s.append(time.perf_counter())
            return scores

        tokens = self._model.generate(**self._inputs, **self._options, logits_processor=[note])
        return tokens[0].tolist(), (times_s[-1] - times_s[0]) / (len(times_s) - 1)


def run_all(generations: list[Generation]) -> tuple[list[list[int]], np.ndarray]:
    """Tokens and seconds a token of several, one after the other."""
    found = [one.run() for one in generations]
    return [tokens for tokens, _ in found], np.array([seconds for _, seconds in found])
