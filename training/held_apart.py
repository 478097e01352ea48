"""Evaluation prompts must not be trained on: dialogues that ask them are left out."""

import re
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from poss_export.text import Text
from poss_export.training.dialogues import Dialogues

WORDS = 13  # that a prompt and a dialogue have in a row are no chance; of a shorter prompt, all of them


class HeldApart:
    """Tells dialogues that ask one of some prompts."""

    def __init__(self, turns: Iterable[str]) -> None:
        """Remember the runs of words of user turns that must not be asked."""
        self._runs: dict[int, set[tuple[str, ...]]] = {}
        for turn in turns:
            words = _words(turn)
            for run in _runs(words, min(WORDS, len(words))):
                self._runs.setdefault(len(run), set()).add(run)

    def asked(self, text: str) -> bool:
        """Return whether a text holds a run of words of one of the turns."""
        words = _words(text)
        return any(not runs.isdisjoint(_runs(words, length)) for length, runs in self._runs.items())

    def free(self, dialogues: Dialogues, text: Text) -> NDArray[np.bool_]:
        """Return which dialogues ask none of the turns, bool `[dialogues]`; answers are not looked at."""
        asked = ~dialogues.answer_mask
        said = [dialogues.ids[a:b][asked[a:b]].tolist() for a, b in pairwise(dialogues.offsets)]
        return np.array([not self.asked(text.decode(ids)) for ids in said], np.bool_)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _runs(words: list[str], length: int) -> Iterable[tuple[str, ...]]:
    return (tuple(words[i : i + length]) for i in range(len(words) - length + 1)) if length else ()
