"""The draft tree: tokens that the target verifies in one pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class DraftTree:
    """Nodes in an order where a parent comes before its children; node 0 is the root, at depth 0.

    tokens: int64 [nodes]. parents: int64 [nodes], the root's own entry is 0. scores: float32 [nodes],
    cumulative log-probability, 0 for the root. Children of one node have descending scores: their
    order is the draft rank.

        tokens   r a b c d        r ─┬─ a ─┬─ c        mask  r a b c d
        parents  0 0 0 1 1           └─ b  └─ d        row c 1 1 0 1 0
    """

    tokens: NDArray[np.int64]
    parents: NDArray[np.int64]
    scores: NDArray[np.float32]

    def __post_init__(self) -> None:
        """Check the order of the nodes."""
        assert (self.parents < np.maximum(np.arange(len(self)), 1)).all(), self.parents

    @classmethod
    def with_root(
        cls,
        root: int,
        tokens: Sequence[int] | NDArray[np.int64] = (),
        parents: Sequence[int] | NDArray[np.int64] = (),
        scores: Sequence[float] | NDArray[np.floating] = (),
    ) -> "DraftTree":
        """Put the root before what a draft graph returns; without that, a plain step."""
        return cls(
            np.concatenate(([root], tokens)).astype(np.int64),
            np.concatenate(([0], parents)).astype(np.int64),
            np.concatenate(([0.0], scores)).astype(np.float32),
        )

    @classmethod
    def chain(cls, tokens: Sequence[int] | NDArray[np.int64]) -> "DraftTree":
        """Return a tree of one path; its first token is the root."""
        rest = np.asarray(tokens[1:], dtype=np.int64)
        return cls.with_root(int(tokens[0]), rest, np.arange(len(rest)), np.zeros(len(rest), np.float32))

    @cached_property
    def is_chain(self) -> bool:
        """Whether no node has siblings: the tree is one path."""
        return bool((self.parents[1:] == np.arange(len(self) - 1)).all())

    def __len__(self) -> int:
        """Return the width: rows of the target call that verifies it, the root's included."""
        return len(self.tokens)

    def first(self, width: int) -> "DraftTree":
        """Return the tree of the first `width` nodes; any beginning of the order is a whole tree."""
        if width >= len(self):
            return self
        return DraftTree(self.tokens[:width], self.parents[:width], self.scores[:width])

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """Which nodes a node sees, [nodes, nodes]: its ancestors and itself."""
        if self.is_chain:
            return np.tri(len(self), dtype=bool)
        mask = np.eye(len(self), dtype=bool)
        for node, parent in enumerate(self.parents.tolist()):
            mask[node] |= mask[parent]
        return mask

    @cached_property
    def depths(self) -> NDArray[np.int64]:
        """Steps from the root, [nodes]."""
        depths = [0] * len(self)
        for node, parent in enumerate(self.parents.tolist()[1:], start=1):
            depths[node] = depths[parent] + 1
        return np.array(depths, dtype=np.int64)

    @cached_property
    def children(self) -> list[list[int]]:
        """Children of every node, by draft rank."""
        children: list[list[int]] = [[] for _ in range(len(self))]
        for node, parent in enumerate(self.parents.tolist()[1:], start=1):
            children[parent].append(node)
        return children
