"""What the loop asks of an engine.

A session is cheap to construct; entering it loads the engine and allocates its caches, leaving it
frees both. It owns its caches: only `commit` and `reset` move or drop rows. Arrays carry a batch
dimension first; one sequence is enough for the loop.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from poss_export.runtime.tree import DraftTree

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class TargetOutput:
    """Results of one call, in the session's own buffers: the session's next call overwrites them.

    next_tokens: int64 [batch, rows], the likeliest token after each row asked for.
    features: [batch, seq, hidden]. logits: [batch, rows, vocab], read only where they are asked for,
    because on a device that is a transfer.
    """

    next_tokens: Ints
    features: NDArray[Any]
    read_logits: Callable[[], NDArray[Any]]

    @property
    def logits(self) -> NDArray[Any]:
        """Logits [batch, rows, vocab]."""
        return self.read_logits()


class Session(Protocol):
    """What target and drafter sessions share."""

    capacity: int  # rows that a cache holds
    lengths: Ints  # [batch] rows committed
    engine_seconds: float  # time spent in the engine since `reset`

    def __enter__(self) -> Self:
        """Load the engine and allocate the caches."""

    def __exit__(self, *error: object) -> None:
        """Free both."""

    def reset(self) -> None:
        """Empty the caches."""


class TargetSession(Session, Protocol):
    """The target."""

    def forward(
        self, input_ids: Ints, depths: Ints, tree_mask: NDArray[np.bool_], rows: Ints
    ) -> TargetOutput:
        """Run tokens after the committed rows; their cache rows stay provisional until `commit`.

        input_ids, depths: [batch, seq], a token's position is the committed length plus its depth.
        tree_mask: [batch, seq, seq], which tokens of this call a token sees. rows: [batch, rows], of
        which tokens the logits are wanted.
        """

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Keep these rows of the last call, in this order, and drop its others.

        paths: ascending row numbers for each sequence of the batch.
        """


class DraftSession(Session, Protocol):
    """The drafter, whose whole round is one call."""

    def propose(self, next_tokens: Ints, features: NDArray[Any]) -> list[DraftTree]:
        """Read the target's features of new rows, then draw a tree for each sequence of the batch.

        next_tokens: [batch, rows], the token after each row; the last one is the root.
        features: [batch, rows, hidden]. The rows are committed at once, since only accepted tokens are
        ever shown to a drafter.
        """
