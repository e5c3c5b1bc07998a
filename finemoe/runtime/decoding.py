"""How the next token is chosen: greedily unless asked otherwise, with the checkpoint's own settings where they still apply."""

from dataclasses import dataclass
from typing import Any

from finemoe.errors import FinemoeError

_OF_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")
_USUAL = {"top_k": 50}  # what `generate` takes where a checkpoint sets nothing
_NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "typical_p": 1.0, "repetition_penalty": 1.0}


@dataclass(frozen=True)
class Decoding:
    """What a user asks for.

    Attributes:
        is_sampled: draw tokens instead of taking the most probable one.
        temperature, top_p: of the draw; None takes the checkpoint's. seed: of the draw.
    Raises:
        FinemoeError: a number is out of range, or given without sampling.
    """

    is_sampled: bool = False
    temperature: float | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature is not None and not self.temperature > 0:
            raise FinemoeError(f"temperature is {self.temperature}; it must be above 0, and greedy decoding has none")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise FinemoeError(f"top_p is {self.top_p}; it must be in (0, 1]")
        if not self.is_sampled and (self.temperature, self.top_p) != (None, None):
            raise FinemoeError("temperature and top_p are of sampling, but greedy decoding is asked for; give one or the other")

    def options(self) -> dict[str, Any]:
        """Arguments of `generate`; all others come from the checkpoint's generation_config, such as its repetition_penalty."""
        told = {"temperature": self.temperature, "top_p": self.top_p}
        return {"do_sample": self.is_sampled, **{name: value for name, value in told.items() if value is not None}}

    def text(self, generation_config: Any) -> str:
        """In words, with the settings of the checkpoint that apply."""
        told = {name: getattr(generation_config, name, None) for name in (*_OF_SAMPLING, "repetition_penalty")}
        told |= {name: value for name, value in _USUAL.items() if told[name] is None}
        told |= {name: value for name, value in self.options().items() if name in told}
        names = (*_OF_SAMPLING, "repetition_penalty") if self.is_sampled else ("repetition_penalty",)
        parts = [f"{name} {told[name]:g}" for name in names if told[name] not in (None, _NEUTRAL[name])]
        if self.is_sampled:
            return ", ".join(["sampled", *parts, f"seed {self.seed}"])
        return ", ".join(["greedy", *parts])
