"""Which tokens are known, by their embeddings: wherever a token occurs, its embedding has the same bits."""

import numpy as np
import xxhash

from finemoe.maps.forecast_state import NEWEST, NONE


def identities(embeddings: np.ndarray) -> np.ndarray:
    """A number for each row, the same for the same embedding: [B] int64; embeddings [B, h] with the precision of a trace."""
    rows = np.ascontiguousarray(embeddings, dtype=np.float16)
    return np.array([xxhash.xxh3_64_intdigest(row.data) for row in rows], dtype=np.uint64).view(np.int64)


class TokenDirectory:
    """Places for V tokens; where all are taken, the one that has been there longest makes room.

    Attributes:
        keys: [V] int64 identities of those known. count: [1] int64 how many have come in.
    """

    def __init__(self, num_tokens: int) -> None:
        self.keys, self.count = np.zeros(num_tokens, dtype=np.int64), np.zeros(1, dtype=np.int64)
        self._places: dict[int, int] = {}

    def places(self, tokens: np.ndarray, lets_in: bool) -> np.ndarray:
        """Of tokens one after the other, [B] identities: [B] int64.

        Args:
            lets_in: whether tokens that are not known come in, as NEWEST less their place; they are NONE otherwise.
        """
        of = self._come if lets_in else self._known
        return np.fromiter(map(of, tokens.tolist()), dtype=np.int64, count=len(tokens))

    def restored(self) -> None:
        """Keys and count were read from elsewhere."""
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
