"""Acceptance on held-out dialogues, from the same unroll that training uses.

Step j of the unroll at row c + j sees exactly what greedy drafting from row c sees when its first j
tokens were accepted, so one unroll gives every chain from every row.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poss_export.drafters.model import Drafter
from poss_export.training.corpus import BATCH_TOKENS, Corpus
from poss_export.training.features import batches_by_length
from poss_export.training.unroll import unroll


@dataclass(frozen=True)
class ChainAcceptance:
    """How far greedy chains get.

    alpha: chance that the token at depth d is accepted once its parents are, d = 1 ..; chain_tau: tokens
    that a round emits when chains are walked through the answers, as decoding does.
    """

    alpha: tuple[float, ...]
    chain_tau: float


@dataclass(frozen=True)
class ChainCounts:
    """What greedy chains did in each dialogue, int64.

    reached, accepted: `[dialogues, steps]`, rows whose chains were right before a depth, and at it too;
    rounds, emitted: `[dialogues]`, of decoding.
    """

    reached: NDArray[np.int64]
    accepted: NDArray[np.int64]
    rounds: NDArray[np.int64]
    emitted: NDArray[np.int64]

    def acceptance(self) -> ChainAcceptance:
        """Return the rates over all dialogues."""
        alpha = self.accepted.sum(0) / self.reached.sum(0).clip(min=1)
        tau = self.emitted.sum() / max(1, self.rounds.sum())
        return ChainAcceptance(tuple(alpha.tolist()), float(tau))


@torch.inference_mode()
def count_chains(drafter: Drafter, corpus: Corpus, steps: int, most: int | None = None) -> ChainCounts:
    """Return how far chains of `steps` tokens get in at most so many held-out dialogues, in their order."""
    held_out = np.flatnonzero(corpus.dialogues.validation)[:most]
    truth_of = corpus.draft_index.cpu()[torch.from_numpy(corpus.dialogues.ids)]
    head = corpus.head_of(drafter)
    found = dict[int, tuple[Any, ...]]()
    for indices in batches_by_length(corpus.dialogues.lengths, held_out, BATCH_TOKENS[corpus.device.type]):
        batch, outputs = corpus.load(indices)
        rows, truth = batch.rows.cpu(), truth_of[outputs.cpu() + 1]
        right = torch.zeros(steps, *rows.shape, dtype=torch.bool)
        with corpus.autocast():
            for step, (predict, _) in enumerate(unroll(drafter, batch, steps)):
                guess = (predict @ head.T).argmax(-1).cpu()
                right[step][rows] = guess == truth
        for index, correct, scored in zip(indices.tolist(), right.unbind(1), rows, strict=True):
            found[index] = dialogue_counts(correct[:, scored])
    reached, accepted, rounds, emitted = zip(*(found[index] for index in held_out.tolist()), strict=True)
    return ChainCounts(np.array(reached), np.array(accepted), np.array(rounds), np.array(emitted))


def dialogue_counts(correct: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64], int, int]:
    """Return what `ChainCounts` holds of a dialogue; correct: bool `[steps, rows]`, which were."""
    steps, rows = correct.shape
    lengths = _accepted_lengths(correct).numpy()
    reached = [int((lengths[: max(0, rows - step)] >= step).sum()) for step in range(steps)]
    accepted = [int((lengths[: max(0, rows - step)] > step).sum()) for step in range(steps)]
    rounds = emitted = anchor = 0
    while anchor < rows:
        rounds += 1
        emitted += min(int(lengths[anchor]) + 1, rows - anchor)
        anchor += int(lengths[anchor]) + 1
    return np.array(reached), np.array(accepted), rounds, emitted


def _accepted_lengths(correct: Tensor) -> Tensor:
    """Return how many tokens of the chain from each row are right; correct: bool `[steps, rows]`."""
    steps, rows = correct.shape
    alive = torch.ones(rows, dtype=torch.bool)
    lengths = torch.zeros(rows, dtype=torch.int64)
    for step in range(min(steps, rows)):
        shifted = torch.zeros(rows, dtype=torch.bool)
        shifted[: rows - step] = correct[step, step:]
        alive &= shifted
        lengths += alive
    return lengths
