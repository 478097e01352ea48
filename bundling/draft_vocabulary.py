"""The draft vocabulary that a build gives to a drafter of its target's whole vocabulary."""

from itertools import chain

import numpy as np
from numpy.typing import NDArray

from poss_export.calibration.record import Record
from poss_export.config import TreeShape
from poss_export.draft_vocabulary import DraftVocabulary
from poss_export.drafters.checkpoint import DrafterCheckpoint
from poss_export.drafters.vocabulary import USUAL_SIZE, most_frequent, ranks_of
from poss_export.errors import InputError
from poss_export.targets.checkpoint import Target

_WIDE = 0.25  # of the target's weights: more than that in heads alone, and a round is no cheap guess


def cut_drafter(
    target: Target, drafter: DrafterCheckpoint, size: int, samples: Record | None
) -> DrafterCheckpoint:
    """Return a drafter that proposes the target's `size` most frequent tokens; it is changed.

    Frequencies are those of samples of the target's text, or else of its tokenizer's order.

    Raises InputError where it has a draft vocabulary already, or `size` is not below the target's.
    """
    vocab_size, has = target.config.vocab_size, drafter.drafter.config.draft_vocab_size
    if has < vocab_size:
        raise InputError(
            f"drafter {drafter.name!r} has a draft vocabulary already, {has} of {vocab_size} ids: "
            "it cannot be given another; leave it out",
            options=("draft_vocab_size",),
        )
    if not 1 <= size < vocab_size:
        raise InputError(
            f"draft vocabulary of {size} ids: expected 1 to {vocab_size - 1}, less than the target's "
            f"{vocab_size}; leave it out to let all be proposed",
            options=("draft_vocab_size",),
        )
    counts = np.zeros(vocab_size, np.int64) if samples is None else _counts(samples, vocab_size)
    ids = most_frequent(counts, ranks_of(target.text, vocab_size), size)
    return drafter.cut(DraftVocabulary.of(ids, "tokenizer" if samples is None else "samples"))


def wide_head(target: Target, drafter: DrafterCheckpoint, tree: TreeShape) -> str | None:
    """Return what a round pays for a drafter that proposes all of a large vocabulary; None: it is little."""
    config = drafter.drafter.config
    passes = tree.depth if config.drafting == "tree" else 1
    read = passes * config.draft_vocab_size * config.hidden_size
    if not USUAL_SIZE < config.draft_vocab_size == config.vocab_size or read < _WIDE * target.parameters:
        return None
    return (
        f"drafter {drafter.name!r} can propose all {config.draft_vocab_size:,} tokens: a round reads its "
        f"head {passes} times, {read / 1e9:.2f} billion weights beside the target's "
        f"{target.parameters / 1e9:.2f}; a draft vocabulary of some thousands makes it faster, and output "
        "stays the same"
    )


def _counts(samples: Record, vocab_size: int) -> NDArray[np.int64]:
    """Return how often each id is in the prompts and answers of samples."""
    answers = (item.tokens for item in samples.rounds)
    prompts = (dialogue.prompt for dialogue in samples.dialogues)
    tokens = np.fromiter(chain.from_iterable(chain(prompts, answers)), np.int64)
    return np.bincount(tokens, minlength=vocab_size)
