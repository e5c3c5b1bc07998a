"""How long prompts and answers may be, and how requests' options become those of `generate`."""

from dataclasses import dataclass
from typing import Any

from finemoe.serving.refusals import Refusal
from finemoe.serving.running import RunningRequest

LENGTHS = ("max_completion_tokens", "max_tokens", "max_output_tokens")  # names of the same at different endpoints


@dataclass(frozen=True)
class Limits:
    """Limits of the server.

    Args:
        context_tokens: most tokens of prompt and answer together.
        new_tokens: most tokens of an answer, and what a request gets that asks for no number.
        pad_token_id: token that `generate` may fill with.
        vocabulary_size: number of tokens that the model knows.
    """

    context_tokens: int
    new_tokens: int
    pad_token_id: int | None
    vocabulary_size: int

    def apply(self, request: RunningRequest, num_prompt_tokens: int, config: Any) -> None:
        """Set what a request asks for in its GenerationConfig.

        Raises:
            Refusal: prompt and answer would be too long, the prompt is empty, or a token is unknown.
        """
        if not num_prompt_tokens:
            raise Refusal("the prompt has no tokens; give a text", param="prompt")
        unknown = [token for token in request.options.get("logit_bias", {}) if not 0 <= token < self.vocabulary_size]
        if unknown:
            raise Refusal(f"logit_bias: the model has no token {unknown[0]}", param="logit_bias")
        request.prompt_tokens = num_prompt_tokens
        config.max_new_tokens, config.pad_token_id = self._new_tokens(request, num_prompt_tokens), self.pad_token_id
        temperature, top_p = request.options.get("temperature"), request.options.get("top_p")
        if temperature is not None:
            config.do_sample = temperature > 0  # the handlers leave it as it is: a temperature alone would change nothing
            config.temperature = temperature or 1.0
        if top_p is not None:
            config.top_p = top_p

    def _new_tokens(self, request: RunningRequest, num_prompt_tokens: int) -> int:
        name = next((name for name in LENGTHS if request.options.get(name) is not None), None)
        room = self.context_tokens - num_prompt_tokens
        if room < 1:
            raise Refusal(
                f"the prompt has {num_prompt_tokens} tokens, but the server's context is {self.context_tokens}, answer included; "
                "shorten the prompt",
                param="messages" if "messages" in request.options else "prompt",
                code="context_length_exceeded",
            )
        if name is None:
            return min(self.new_tokens, room)
        asked = int(request.options[name])
        if asked > self.new_tokens:
            raise Refusal(f"{name} is {asked}, but this server generates at most {self.new_tokens} tokens", param=name)
        if asked > room:
            raise Refusal(
                f"the prompt has {num_prompt_tokens} tokens and {name} is {asked}, but the server's context is "
                f"{self.context_tokens}; shorten the prompt, or ask for at most {room}",
                param=name,
                code="context_length_exceeded",
            )
        return asked
