"""The draft vocabulary: the ids a drafter may propose, chosen by frequency."""

import numpy as np
from numpy.typing import NDArray

from poss_export.errors import InputError
from poss_export.training.dialogues import Dialogues

PRIOR_TOKENS = 0.3  # weight of the prior, as a share of the counted tokens


def check_size(size: int, vocab_size: int) -> None:
    """Raise InputError where the target has no `size` ids to choose."""
    if not 1 <= size <= vocab_size:
        raise InputError(
            f"draft vocabulary of {size} ids: expected 1 to {vocab_size}, the target's vocabulary",
            options=("draft_vocab_size",),
        )


def choose_vocabulary(dialogues: Dialogues, vocab_size: int, size: int) -> NDArray[np.int64]:
    """Return `size` ascending ids for the draft vocabulary.

    Ids are ranked by their count in training dialogues plus a Zipf prior over the id itself: byte-pair
    vocabularies number their tokens by how early they were merged, so a low id is frequent in text at
    large. Counts alone over-fit a few hundred thousand tokens.
    """
    training = np.repeat(~dialogues.validation, dialogues.lengths)
    counts = np.bincount(dialogues.ids[training], minlength=vocab_size).astype(np.float64)
    prior = 1.0 / (np.arange(vocab_size) + 256.0)
    counts += PRIOR_TOKENS * counts.sum() * prior / prior.sum()
    return np.sort(np.argsort(-counts, kind="stable")[:size])


def coverage(dialogues: Dialogues, draft_ids: NDArray[np.int64]) -> float:
    """Return the share of held-out answer tokens that the draft vocabulary holds."""
    held_out = np.repeat(dialogues.validation, dialogues.lengths) & dialogues.answer_mask
    return float(np.isin(dialogues.ids[held_out], draft_ids).mean())
