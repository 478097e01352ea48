"""The draft vocabulary that a build gave to a drafter: which ids it proposes, and how they were chosen."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from poss_export.drafter_config import DrafterConfig

ChosenBy = Literal["tokenizer", "samples"]
_WORDS: dict[ChosenBy, str] = {
    "tokenizer": "the tokenizer's order",
    "samples": "their counts in the samples, then by the tokenizer's order",
}


@dataclass(frozen=True)
class DraftVocabulary:
    """Ascending target ids as ranges, "0-8189,128001,128009", and what they were chosen by."""

    ids: str
    chosen_by: ChosenBy

    @classmethod
    def of(cls, ids: NDArray[Any], chosen_by: ChosenBy) -> "DraftVocabulary":
        """Return the vocabulary of int64 `[size]` ids, ascending."""
        starts = np.flatnonzero(np.diff(ids, prepend=-2) != 1)
        ends = np.append(starts[1:], len(ids)) - 1
        ranges = zip(ids[starts].tolist(), ids[ends].tolist(), strict=True)
        return cls(",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges), chosen_by)

    def to_array(self) -> NDArray[np.int64]:
        """Return the ids, int64 `[size]`."""
        return np.fromiter(self._each(), np.int64)

    def _each(self) -> Iterator[int]:
        for part in self.ids.split(","):
            first, _, last = part.partition("-")
            yield from range(int(first), int(last or first) + 1)


def describe_vocabulary(config: DrafterConfig, cut: DraftVocabulary | None) -> str:
    """Return in words what a drafter can propose, which a build may have cut."""
    chosen = "" if cut is None else f": the most frequent by {_WORDS[cut.chosen_by]}"
    return f"{config.draft_vocab_size:,} of {config.vocab_size:,} tokens can be drafted{chosen}"
