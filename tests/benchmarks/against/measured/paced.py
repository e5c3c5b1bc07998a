"""Time per token over a link that takes its time."""

from typing import Any

import finemoe
from finemoe.runtime.loading import load_model

from .generating import Generation, run_all
from .history import store_of


class Measured:
    """Variants are policies; each has a model and an engine of its own, which stays from round to round.

    Args:
        model: a miniature; prompts, num_tokens: the requests; share: of all experts on the device; load_s: what one expert takes;
        variants: those to be measured; history: arguments of `recorded`.
    """

    def __init__(
        self,
        model: str,
        prompts: list[str],
        num_tokens: int,
        share: float,
        load_s: float,
        variants: list[str],
        history: dict[str, Any],
    ) -> None:
        store = store_of(history)
        lm, tokenizer = load_model(model)
        self.expected, _ = run_all([Generation(lm, tokenizer, prompt, num_tokens) for prompt in prompts])
        self._engines, self._generations = [], {}
        for variant in variants:
            lm, tokenizer = load_model(model)
            link = f"paced:{_expert_bytes(lm) / load_s:.0f}B/s"
            self._engines.append(finemoe.offload(lm, share, variant, history=store, link=link))
            self._generations[variant] = [Generation(lm, tokenizer, prompt, num_tokens) for prompt in prompts]
            self.measure(variant)

    def measure(self, variant: str) -> dict[str, Any]:
        """Seconds a token after the first, mean over prompts."""
        tokens, seconds = run_all(self._generations[variant])
        return {"values": {variant: float(seconds.mean())}, "tokens": tokens}

    def close(self) -> None:
        for engine in self._engines:
            engine.close()


def _expert_bytes(model: Any) -> float:
    """What the weights of one expert take."""
    experts = next(module for module in model.modules() if hasattr(module, "gate_up_proj") and module.gate_up_proj.dim() == 3)
    return sum(weights.nbytes for weights in experts.parameters()) / len(experts.gate_up_proj)
