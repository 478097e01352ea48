"""The draft vocabulary: the ids a drafter may propose, chosen by frequency."""

import numpy as np
from numpy.typing import NDArray

from poss_export.drafters.vocabulary import most_frequent
from poss_export.errors import InputError
from poss_export.training.dialogues import Dialogues


def check_size(size: int, vocab_size: int) -> None:
    """Raise InputError where the target has no `size` ids to choose."""
    if not 1 <= size <= vocab_size:
        raise InputError(
            f"draft vocabulary of {size} ids: expected 1 to {vocab_size}, the target's vocabulary",
            options=("draft_vocab_size",),
        )


def choose_vocabulary(dialogues: Dialogues, vocab_size: int, size: int) -> NDArray[np.int64]:
    """Return `size` ascending ids for the draft vocabulary.

    They are the most frequent of the training dialogues, and of text at large: byte-pair vocabularies number
    their tokens by how early they were merged, so a low id is frequent.
    """
    training = np.repeat(~dialogues.validation, dialogues.lengths)
    counts = np.bincount(dialogues.ids[training], minlength=vocab_size)
    return most_frequent(counts, np.arange(vocab_size), size)


def coverage(dialogues: Dialogues, draft_ids: NDArray[np.int64]) -> float:
    """Return the share of held-out answer tokens that the draft vocabulary holds."""
    held_out = np.repeat(dialogues.validation, dialogues.lengths) & dialogues.answer_mask
    return float(np.isin(dialogues.ids[held_out], draft_ids).mean())
