"""The nodes that a round may verify: drafted and looked up, in one tree, each with its chance."""

import numpy as np
from numpy.typing import NDArray

from poss_export.runtime.tree import DraftTree


class Candidates:
    """Nodes with the chance that the whole path to them is accepted; a parent's is never below a child's.

    Node 0 is the root, and parents come before children. A token is behind a node once, whoever proposes it.
    """

    def __init__(self, root: int) -> None:
        """Begin with the root alone."""
        self.tokens, self.parents, self.depths, self.chances = [root], [0], [0], [1.0]
        self._children: list[dict[int, int]] = [{}]

    def __len__(self) -> int:
        """Return the number of nodes, the root's included."""
        return len(self.tokens)

    def add(self, parent: int, token: int, chance: float) -> int:
        """Return the node of `token` behind `parent`; of two chances the higher counts."""
        chance = min(chance, self.chances[parent])
        node = self._children[parent].get(token)
        if node is not None:
            self.chances[node] = max(self.chances[node], chance)
            return node
        node = self._children[parent][token] = len(self.tokens)
        self.tokens.append(token)
        self.parents.append(parent)
        self.depths.append(self.depths[parent] + 1)
        self.chances.append(chance)
        self._children.append({})
        return node

    def graft(self, node: int, tokens: list[int], chances: list[float]) -> None:
        """Hang a chain behind a node; each chance is of a token where all before it are right."""
        chance = self.chances[node]
        for token, share in zip(tokens, chances, strict=True):
            chance *= share
            node = self.add(node, token, chance)

    def best_path(self) -> list[int]:
        """Return the path from the root whose nodes' chances sum to most: the chain that gains most."""
        gains = self.chances.copy()
        best = list(range(len(self)))  # the child that each node's best path goes on with; itself: none
        for node in range(len(self) - 1, 0, -1):
            parent = self.parents[node]
            if best[parent] == parent or gains[node] > gains[best[parent]]:
                best[parent] = node
            gains[parent] = self.chances[parent] + gains[best[parent]]
        path = [0]
        while best[path[-1]] != path[-1]:
            path.append(best[path[-1]])
        return path

    def by_chance(self) -> list[int]:
        """Return all nodes, the likeliest first and parents before children: each beginning is a tree."""
        return sorted(range(len(self)), key=lambda node: -self.chances[node])

    def tree(self, nodes: list[int]) -> DraftTree:
        """Return the tree of these nodes, parents before children; a score is the logarithm of a chance."""
        number = {node: index for index, node in enumerate(nodes)}
        scores: NDArray[np.float32] = np.log(
            np.maximum([self.chances[node] for node in nodes], 1e-9), dtype=np.float32
        )
        return DraftTree(
            np.array([self.tokens[node] for node in nodes], dtype=np.int64),
            np.array([number[self.parents[node]] for node in nodes], dtype=np.int64),
            scores,
        )
