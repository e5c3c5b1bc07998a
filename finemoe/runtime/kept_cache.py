"""Keys and values kept between the turns of a chat, so that a turn computes only what is new in it."""

from typing import Any

import numpy as np
from transformers import DynamicCache


class KeptCache:
    """The cache of one conversation.

    A chat template may rewrite earlier turns, for example leave out what a model thought. The cache is then cut back to the last
    token that both texts share, or dropped where it cannot be cut.

    Args:
        model: the model that generates.
    """

    def __init__(self, model: Any) -> None:
        self._config = model.config
        self._tokens = np.zeros(0, dtype=np.int64)  # whose keys and values are held
        self._keys_values = DynamicCache(config=self._config)

    def for_prompt(self, tokens: np.ndarray) -> Any:
        """The cache as `past_key_values` of a `generate` call whose input_ids are these, [n]."""
        most = min(len(tokens) - 1, len(self._tokens))  # generate needs at least one new token
        differing = np.flatnonzero(tokens[:most] != self._tokens[:most])
        shared = int(differing[0]) if len(differing) else most
        if not self._cut(len(self._tokens) - shared):
            self._keys_values = DynamicCache(config=self._config)
        return self._keys_values

    def hold(self, tokens: np.ndarray) -> None:
        """Note the prompt and the answer, [n]; of the last tokens there may be no keys and values yet."""
        self._tokens = tokens[: self._keys_values.get_seq_length()]

    def _cut(self, num_tokens: int) -> bool:
        """Remove the last tokens; whether that could be done."""
        if not num_tokens:
            return True
        try:
            self._keys_values.crop(-num_tokens)
        except RuntimeError:  # a sliding window or a recurrent state has forgotten what came before
            return False
        return True
