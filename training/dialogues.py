"""Dialogues as the trainer reads them: one flat id array, where answers are, where dialogues begin."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from poss_export.errors import InputError, translated
from poss_export.files import whole


@dataclass(frozen=True)
class Dialogues:
    """Tokenised dialogues, chat template included.

    ids: int64 `[tokens]`; answer_mask: bool `[tokens]`, True on tokens the target wrote;
    offsets: int64 `[dialogues + 1]`; validation: bool `[dialogues]`, True on those held out.
    """

    ids: NDArray[np.int64]
    answer_mask: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    validation: NDArray[np.bool_]

    def __len__(self) -> int:
        """Return the number of dialogues."""
        return len(self.validation)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each dialogue."""
        return np.diff(self.offsets)

    @classmethod
    def from_answers(cls, pairs: Sequence[tuple[list[int], list[int]]], holdout: float) -> "Dialogues":
        """Join (prompt, answer) id lists; every `1 / holdout`-th dialogue is held out."""
        every = max(2, round(1 / holdout))
        ids = [np.array([*prompt, *answer], np.int64) for prompt, answer in pairs]
        masks = [np.repeat([False, True], [len(prompt), len(answer)]) for prompt, answer in pairs]
        return cls(
            ids=np.concatenate(ids),
            answer_mask=np.concatenate(masks),
            offsets=np.cumsum([0, *map(len, ids)]),
            validation=np.arange(len(pairs)) % every == every - 1,
        )

    @classmethod
    def load(cls, path: Path) -> "Dialogues":
        """Read an .npz file; raises InputError where it is not one of ours."""
        words = (
            f"{path}: not a dialogues file; expected an .npz with ids, answer_mask, offsets and validation, "
            "as `poss-export train` writes it"
        )
        with translated(InputError, words), path.open("rb") as file, np.load(file) as data:
            dialogues = cls(
                ids=data["ids"].astype(np.int64),
                answer_mask=data["answer_mask"].astype(bool),
                offsets=data["offsets"].astype(np.int64),
                validation=data["validation"].astype(bool),
            )
            dialogues._check()
        return dialogues

    def _check(self) -> None:
        """Raise ValueError where the arrays do not belong together."""
        bounds = self.offsets.tolist()
        if bounds[0] != 0 or bounds[-1] != len(self.ids) or sorted(set(bounds)) != bounds:
            raise ValueError("its offsets do not cut its ids")
        if len(self.answer_mask) != len(self.ids) or len(self.validation) != len(bounds) - 1:
            raise ValueError("its arrays differ in length")

    def save(self, path: Path) -> None:
        """Write an .npz file that `load` reads."""
        with whole(path) as partial, partial.open("wb") as file:
            np.savez_compressed(
                file,
                ids=self.ids.astype(np.uint32),
                answer_mask=self.answer_mask,
                offsets=self.offsets,
                validation=self.validation,
            )

    def __add__(self, other: "Dialogues") -> "Dialogues":
        """Return these dialogues followed by the others."""
        return Dialogues(
            ids=np.concatenate((self.ids, other.ids)),
            answer_mask=np.concatenate((self.answer_mask, other.answer_mask)),
            offsets=np.concatenate((self.offsets, other.offsets[1:] + self.offsets[-1])),
            validation=np.concatenate((self.validation, other.validation)),
        )
