"""What PyTorch computes for two sequences of random tokens: what a bundle's graphs are compared with."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PREFIX, BRANCH = 24, 4  # tokens that the two sequences share, and have of their own
ROWS = PREFIX + 2 * BRANCH  # that a cache must hold for the comparison
DRAFTED = (slice(0, PREFIX), slice(PREFIX, PREFIX + BRANCH - 1))  # rows of each call of the drafter

Floats = NDArray[np.float32]
Nodes = NDArray[Any]


@dataclass(frozen=True)
class Reference:
    """PyTorch's results for two sequences that part after `PREFIX` tokens.

    ids: int64 `[2, tokens]`. features: `[2, tokens, hidden]`. logits: `[2, tokens, vocab]`.
    trees: of each call in `DRAFTED`, which reads rows of the first sequence, what the draft graph returns:
    tokens, parents and scores, each `[nodes]`; empty without a drafter.
    """

    ids: NDArray[np.int64]
    features: Floats
    logits: Floats
    trees: tuple[tuple[Nodes, Nodes, Nodes], ...] = ()
