"""Which tokens were fed after which: a tree of all prefixes, by which a recorded row is found again."""

import numpy as np

_ROOT = 0


class Prefixes:
    """The prefixes of several sequences, and for each the row of the first forward that fed its last token.

    Positions are matched by their content, never by counting: a row belongs to a sequence if it fed the same token after exactly
    the same tokens. Rows of one forward that feed the same (copies of a prompt) are told apart by their slot.
    """

    def __init__(self) -> None:
        self._children: dict[tuple[int, int], int] = {}
        self._paths: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # by slot: the tokens seen last, and their nodes
        self._forward_of: dict[int, int] = {}
        self._rows: dict[int, dict[int, int]] = {}  # by node: the recorded row of each slot
        self.forwards: list[int] = []  # of every recorded row, in order

    def feed(self, slot: int, tokens: np.ndarray, num_fed: int, forward: int) -> list[int]:
        """Note that a forward fed the last `num_fed` of a slot's tokens; the positions that no earlier forward fed."""
        nodes = self._nodes(slot, tokens)
        new = []
        for position in range(max(0, len(tokens) - num_fed), len(tokens)):
            node = int(nodes[position])
            if self._forward_of.setdefault(node, forward) == forward:
                self._rows.setdefault(node, {})[slot] = len(self.forwards)
                self.forwards.append(forward)
                new.append(position)
        return new

    def find(self, slot: int, tokens: np.ndarray) -> list[int]:
        """The recorded row of every position of a sequence, the slot's own where it has one; ends where nothing is known."""
        found: list[int] = []
        node: int | None = _ROOT
        for token in tokens.tolist():
            node = self._children.get((_ROOT if node is None else node, token))
            if node is None or node not in self._rows:
                break
            rows = self._rows[node]
            found.append(rows.get(slot, next(iter(rows.values()))))
        return found

    def _nodes(self, slot: int, tokens: np.ndarray) -> np.ndarray:
        before, path = self._paths.get(slot, (tokens[:0], np.zeros(0, dtype=np.int64)))
        shorter = min(len(before), len(tokens))
        differs = before[:shorter] != tokens[:shorter]
        common = int(differs.argmax()) if differs.any() else shorter
        node, added = int(path[common - 1]) if common else _ROOT, []
        for token in tokens[common:].tolist():
            node = self._children.setdefault((node, token), len(self._children) + 1)
            added.append(node)
        path = np.concatenate([path[:common], np.array(added, dtype=np.int64)])
        self._paths[slot] = (tokens, path)
        return path
