"""Acceptance on held-out dialogues, from the same unroll that training uses.

Step j of the unroll at row c + j sees exactly what greedy drafting from row c sees when its first j
tokens were accepted, so one unroll gives every chain from every row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ChainAcceptance:
    """How far greedy chains get.

    alpha: chance that the token at depth d is accepted once its parents are, d = 1 ..; chain_tau: tokens
    that a round emits when chains are walked through the answers, as decoding does.
    """

    alpha: tuple[float, ...]
    chain_tau: float


class AcceptanceCounter:
    """Collects which steps were right, dialogue by dialogue."""

    def __init__(self, steps: int) -> None:
        """Count chains of `steps` tokens."""
        self.steps = steps
        self.reached = torch.zeros(steps)
        self.accepted = torch.zeros(steps)
        self.rounds = self.emitted = 0

    def add(self, right: Tensor, rows: Tensor) -> None:
        """Add one batch; right: bool `[steps, batch, seq]`, rows: scored rows, bool `[batch, seq]`."""
        for correct, scored in zip(right.unbind(1), rows, strict=True):
            columns = scored.nonzero()[:, 0]
            if len(columns) == 0:
                continue
            lengths = _accepted_lengths(correct[:, columns])
            for step in range(self.steps):
                self.reached[step] += (lengths[: len(columns) - step] >= step).sum()
                self.accepted[step] += (lengths[: len(columns) - step] > step).sum()
            anchor, chain = 0, lengths.tolist()
            while anchor < len(chain):
                self.rounds += 1
                self.emitted += min(chain[anchor] + 1, len(chain) - anchor)
                anchor += chain[anchor] + 1

    def result(self) -> ChainAcceptance:
        """Return the rates."""
        alpha = self.accepted / self.reached.clamp(min=1)
        return ChainAcceptance(tuple(alpha.tolist()), self.emitted / max(1, self.rounds))


def _accepted_lengths(correct: Tensor) -> Tensor:
    """Return how many tokens of the chain from each row are right; correct: bool `[steps, rows]`."""
    steps, rows = correct.shape
    alive = torch.ones(rows, dtype=torch.bool)
    lengths = torch.zeros(rows, dtype=torch.int64)
    for step in range(steps):
        shifted = torch.zeros(rows, dtype=torch.bool)
        shifted[: rows - step] = correct[step, step:]
        alive &= shifted
        lengths += alive
    return lengths
