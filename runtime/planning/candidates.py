"""The nodes that a round may verify: drafted and looked up, in one tree, each with its chance."""

from collections.abc import Iterable
from math import log

import numpy as np

from poss_export.runtime.tree import DraftTree

_LEAST = 0.02  # chance below which a looked-up token is not worth a thought


class Candidates:
    """Nodes with the chance that the whole path to them is accepted; a parent's is never below a child's.

    Node 0 is the root, and parents come before children. A token is behind a node once, whoever proposes it.
    """

    def __init__(self, root: int) -> None:
        """Begin with the root alone."""
        self.tokens, self.parents, self.chances = [root], [0], [1.0]
        self._nodes: dict[tuple[int, int], int] = {}  # by parent and token

    @classmethod
    def drafted(cls, tree: DraftTree, chances: list[float]) -> "Candidates":
        """Begin with a drafted tree, whose siblings differ; `chances` are those of its nodes."""
        made = cls(int(tree.tokens[0]))
        made.tokens, made.parents, made.chances = tree.tokens.tolist(), tree.parents.tolist(), chances
        behind = zip(made.parents[1:], made.tokens[1:], strict=True)
        made._nodes = {place: node for node, place in enumerate(behind, start=1)}
        return made

    def __len__(self) -> int:
        """Return the number of nodes, the root's included."""
        return len(self.tokens)

    def add(self, parent: int, token: int, chance: float) -> int:
        """Return the node of `token` behind `parent`; of two chances the higher counts."""
        chance = min(chance, self.chances[parent])
        node = self._nodes.setdefault((parent, token), len(self.tokens))
        if node < len(self.tokens):
            self.chances[node] = max(self.chances[node], chance)
        else:
            self.tokens.append(token)
            self.parents.append(parent)
            self.chances.append(chance)
        return node

    def graft(self, node: int, tokens: list[int], chances: Iterable[float]) -> None:
        """Hang a chain behind a node; each chance is of a token where all before it are right.

        No more chances are asked for than the chain is worth.
        """
        chance = self.chances[node]
        for token, share in zip(tokens, chances, strict=True):
            chance *= share
            if chance < _LEAST:
                return
            node = self.add(node, token, chance)

    def best_path(self) -> list[int]:
        """Return the path from the root whose nodes' chances sum to most: the chain that gains most."""
        gains = self.chances.copy()
        best = list(range(len(self)))  # the child that each node's best path goes on with; itself: none
        for node in range(len(self) - 1, 0, -1):
            parent = self.parents[node]
            if best[parent] == parent or gains[node] > gains[best[parent]]:
                best[parent] = node
                gains[parent] = self.chances[parent] + gains[node]
        path = [0]
        while best[path[-1]] != path[-1]:
            path.append(best[path[-1]])
        return path

    def by_chance(self) -> list[int]:
        """Return all nodes, the likeliest first and parents before children: each beginning is a tree."""
        return sorted(range(len(self)), key=self.chances.__getitem__, reverse=True)

    def tree(self, nodes: list[int]) -> DraftTree:
        """Return the tree of these nodes, parents before children; a score is the logarithm of a chance."""
        number = {node: index for index, node in enumerate(nodes)}
        return DraftTree(
            np.array([self.tokens[node] for node in nodes], dtype=np.int64),
            np.array([number[self.parents[node]] for node in nodes], dtype=np.int64),
            np.array([log(max(self.chances[node], 1e-9)) for node in nodes], dtype=np.float32),
        )
