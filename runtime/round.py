"""One round: the tree that was verified, and what the target accepted of it."""

from dataclasses import dataclass

import numpy as np

from poss_export.runtime.sessions.base import Ints
from poss_export.runtime.tree import DraftTree


@dataclass(frozen=True, eq=False)
class Round:
    """A verified tree, its accepted nodes, the root's 0 first, and the target's own token behind them."""

    tree: DraftTree
    path: tuple[int, ...]
    bonus: int

    @property
    def tokens(self) -> Ints:
        """What the round emitted, int64 [len(path)]: the accepted tokens, then the bonus."""
        return np.append(self.tree.tokens[list(self.path[1:])], self.bonus)

    @property
    def accepted(self) -> int:
        """Drafted tokens that were accepted."""
        return len(self.path) - 1
