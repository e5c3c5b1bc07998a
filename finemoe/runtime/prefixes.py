"""Records which tokens were fed after which others: a tree of all prefixes, used to find recorded rows again."""

import numpy as np


class Prefixes:
    """The prefixes of several sequences, and for each the row of the first forward that fed its last token.

    Positions are matched by content, never by counting: a row belongs to a sequence if it fed the same token after exactly the
    same tokens for the same prompt. (A prompt may contain what another prompt generates, but in a separate forward.) Rows of
    one forward that feed the same tokens (copies of a prompt) are distinguished by their slot.
    """

    def __init__(self) -> None:
        self._children: dict[tuple[int, int], int] = {}
        # By prompt's root and slot: the last tokens seen, and their nodes.
        self._paths: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        self._forward_of: dict[int, int] = {}
        self._rows: dict[int, dict[int, int]] = {}  # recorded row of each slot, by node
        self.forwards: list[int] = []  # the forward of every recorded row, in order

    def feed(self, prompt: int, slot: int, tokens: np.ndarray, num_fed: int, forward: int) -> list[int]:
        """Note that a forward fed the last `num_fed` of a slot's tokens; returns the positions that no earlier forward fed."""
        nodes = self._nodes(_root(prompt), slot, tokens)
        new = []
        for position in range(max(0, len(tokens) - num_fed), len(tokens)):
            node = int(nodes[position])
            if self._forward_of.setdefault(node, forward) == forward:
                self._rows.setdefault(node, {})[slot] = len(self.forwards)
                self.forwards.append(forward)
                new.append(position)
        return new

    def find(self, prompt: int, slot: int, tokens: np.ndarray) -> list[int]:
        """The recorded row of each position of a sequence, preferably the slot's own; stops at the first unknown position."""
        found: list[int] = []
        node = _root(prompt)
        for token in tokens.tolist():
            child = self._children.get((node, token))
            if child is None or child not in self._rows:
                break
            node, rows = child, self._rows[child]
            found.append(rows.get(slot, next(iter(rows.values()))))
        return found

    def _nodes(self, root: int, slot: int, tokens: np.ndarray) -> np.ndarray:
        before, path = self._paths.get((root, slot), (tokens[:0], np.zeros(0, dtype=np.int64)))
        shorter = min(len(before), len(tokens))
        differs = before[:shorter] != tokens[:shorter]
        common = int(differs.argmax()) if differs.any() else shorter
        node, added = int(path[common - 1]) if common else root, []
        for token in tokens[common:].tolist():
            node = self._children.setdefault((node, token), len(self._children) + 1)
            added.append(node)
        path = np.concatenate([path[:common], np.array(added, dtype=np.int64)])
        self._paths[root, slot] = (tokens, path)
        return path


def _root(prompt: int) -> int:
    """The node before a prompt's first token; tokens' nodes are numbered from 1 on."""
    return -1 - prompt
