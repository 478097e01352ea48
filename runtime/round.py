"""One round of draft and verify: what was proposed, and what the target made of it."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from poss_export.runtime.tree import DraftTree


@dataclass(frozen=True, eq=False)
class Round:
    """A verified tree.

    path: numbers of the accepted nodes, the root's 0 first. bonus: the target's own token after the last of
    them, which is the next root.
    """

    tree: DraftTree
    path: tuple[int, ...]
    bonus: int

    @property
    def accepted(self) -> int:
        """Drafted tokens that were accepted."""
        return len(self.path) - 1

    @cached_property
    def tokens(self) -> NDArray[np.int64]:
        """What the round emits, int64 [accepted + 1]: the accepted tokens, then the bonus."""
        return np.append(self.tree.tokens[list(self.path[1:])], self.bonus)
