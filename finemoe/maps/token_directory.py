"""Recognise tokens by their embeddings: every occurrence of a token has the same embedding, bit for bit."""

import numpy as np
import xxhash

from finemoe.maps.forecast_state import NEWEST, NONE


def identities(embeddings: np.ndarray) -> np.ndarray:
    """A number for each row, equal for equal embeddings: [B] int64; embeddings [B, h] in a trace's precision."""
    rows = np.ascontiguousarray(embeddings, dtype=np.float16)
    return np.array([xxhash.xxh3_64_intdigest(row.data) for row in rows], dtype=np.uint64).view(np.int64)


class TokenDirectory:
    """Places for V tokens; if all are taken, the oldest one is replaced.

    Attributes:
        keys: [V] int64 identities of the known tokens. count: [1] int64 number of tokens added so far.
    """

    def __init__(self, num_tokens: int) -> None:
        self.keys, self.count = np.zeros(num_tokens, dtype=np.int64), np.zeros(1, dtype=np.int64)
        self._places: dict[int, int] = {}

    def places(self, tokens: np.ndarray, lets_in: bool) -> np.ndarray:
        """Places of consecutive tokens, [B] identities: [B] int64.

        Args:
            lets_in: whether to add unknown tokens, which are returned as NEWEST minus their place; otherwise they are NONE.
        """
        of = self._come if lets_in else self._known
        return np.fromiter(map(of, tokens.tolist()), dtype=np.int64, count=len(tokens))

    def restored(self) -> None:
        """Rebuild the index after keys and count were read from elsewhere."""
        known = min(int(self.count[0]), len(self.keys))
        self._places = {key: place for place, key in enumerate(self.keys[:known].tolist())}

    def _known(self, key: int) -> int:
        return self._places.get(key, NONE)

    def _come(self, key: int) -> int:
        found = self._places.get(key)
        if found is not None:
            return found
        place = int(self.count[0]) % len(self.keys)
        if self.count[0] >= len(self.keys):
            del self._places[int(self.keys[place])]
        self.keys[place], self._places[key] = key, place
        self.count[0] += 1
        return NEWEST - place
