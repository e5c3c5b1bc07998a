"""Time per token of a whole model: as it is, and offloaded."""

from typing import Any

import finemoe
from finemoe.runtime.loading import load_model

from .generating import Generation, run_all


class Measured:
    """Variants "eager" and "POLICY SHARE", each with a model of its own; at share 1.0 everything is preloaded and resident.

    Args:
        model: a miniature; prompts, num_tokens: what is generated; variants: those to be measured.
    """

    def __init__(self, model: str, prompts: list[str], num_tokens: int, variants: list[str]) -> None:
        self._generations, self._engines = {}, []
        for variant in variants:
            lm, tokenizer = load_model(model)
            if variant != "eager":
                policy, share = variant.split()
                self._engines.append(finemoe.offload(lm, float(share), policy))
                self._engines[-1].preload()
            self._generations[variant] = [Generation(lm, tokenizer, prompt, num_tokens) for prompt in prompts]
        self.expected, _ = run_all(self._generations["eager"])
        for generations in self._generations.values():
            run_all(generations)

    def measure(self, variant: str) -> dict[str, Any]:
        """Seconds a token after the first, mean over prompts."""
        tokens, seconds = run_all(self._generations[variant])
        return {"values": {variant: float(seconds.mean())}, "tokens": tokens}

    def close(self) -> None:
        for engine in self._engines:
            engine.close()
