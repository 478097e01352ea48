"""Dialogues as the trainer reads them: one flat id array, where answers are, where dialogues begin."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from poss_export.errors import InputError, translated
from poss_export.files import whole

PART_FILES = "part-*.npz"
UNKNOWN = "unknown"  # kind of dialogues in files that do not say it
SAME_ANSWER = 8  # dialogues with one prompt are two where these first tokens of the answers differ


@dataclass(frozen=True)
class Dialogues:
    """Tokenised dialogues, chat template included.

    ids: int64 `[tokens]`; answer_mask: bool `[tokens]`, True on tokens the target wrote;
    offsets: int64 `[dialogues + 1]`; validation: bool `[dialogues]`, True on those held out; kinds: str
    `[dialogues]`, what sort of task each is.
    """

    ids: NDArray[np.int64]
    answer_mask: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    validation: NDArray[np.bool_]
    kinds: NDArray[np.str_]

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
        masked = [
            ([*prompt, *answer], [False] * len(prompt) + [True] * len(answer)) for prompt, answer in pairs
        ]
        return cls.join(masked, [UNKNOWN] * len(pairs), holdout)

    @classmethod
    def join(
        cls, masked: Sequence[tuple[list[int], list[bool]]], kinds: Sequence[str], holdout: float
    ) -> "Dialogues":
        """Join (ids, answer mask) lists; every `1 / holdout`-th dialogue is held out."""
        every = max(2, round(1 / holdout))
        return cls(
            ids=np.concatenate([np.array(ids, np.int64) for ids, _ in masked]),
            answer_mask=np.concatenate([np.array(mask, np.bool_) for _, mask in masked]),
            offsets=np.cumsum([0, *(len(ids) for ids, _ in masked)]),
            validation=np.arange(len(masked)) % every == every - 1,
            kinds=np.array(kinds),
        )

    @classmethod
    def load(cls, path: Path) -> "Dialogues":
        """Read an .npz file, or a folder of them without the dialogues that begin like an earlier one.

        Raises:
            InputError: it is not one of ours.
        """
        if not path.is_dir():
            return cls._load_file(path)
        parts = [cls._load_file(part) for part in part_files(path)]
        if not parts:
            raise InputError(
                f"{str(path)!r} holds no {PART_FILES}; name a folder that dialogues were written to"
            )
        return sum(parts[1:], start=parts[0])._distinct()

    @classmethod
    def joined(cls, sources: "Sequence[Dialogues]") -> "Dialogues":
        """Return the dialogues of several sources, without those that an earlier one has, too."""
        if len(sources) == 1:
            return sources[0]
        return sum(sources[1:], start=sources[0])._distinct()

    @classmethod
    def _load_file(cls, path: Path) -> "Dialogues":
        words = (
            f"{path}: not a dialogues file; expected an .npz with ids, answer_mask, offsets and validation, "
            "as `poss-export synthesise` writes it"
        )
        with translated(InputError, words), path.open("rb") as file, np.load(file) as data:
            validation = data["validation"].astype(bool)
            dialogues = cls(
                ids=data["ids"].astype(np.int64),
                answer_mask=data["answer_mask"].astype(bool),
                offsets=data["offsets"].astype(np.int64),
                validation=validation,
                kinds=data["kinds"] if "kinds" in data else np.full(len(validation), UNKNOWN),
            )
            dialogues._check()
        return dialogues

    def check_split(self) -> None:
        """Raise InputError where none is held out, or all are."""
        if self.validation.all() or not self.validation.any():
            raise InputError(
                f"{int(self.validation.sum())} of {len(self)} dialogues are held out; some must be, to "
                "judge the drafter by, and some not: give more dialogues",
                options=("dialogues",),
            )

    def _check(self) -> None:
        """Raise ValueError where the arrays do not belong together."""
        bounds = self.offsets.tolist()
        if bounds[0] != 0 or bounds[-1] != len(self.ids) or sorted(set(bounds)) != bounds:
            raise ValueError("its offsets do not cut its ids")
        if len(self.answer_mask) != len(self.ids) or len(self.validation) != len(bounds) - 1:
            raise ValueError("its arrays differ in length")
        if len(self.kinds) != len(self.validation) or self.kinds.dtype.kind != "U":
            raise ValueError("its kinds are no names of its dialogues")

    def save(self, path: Path) -> None:
        """Write an .npz file that `load` reads."""
        with whole(path) as partial, partial.open("wb") as file:
            np.savez_compressed(
                file,
                ids=self.ids.astype(np.uint32),
                answer_mask=self.answer_mask,
                offsets=self.offsets,
                validation=self.validation,
                kinds=self.kinds,
            )

    def __add__(self, other: "Dialogues") -> "Dialogues":
        """Return these dialogues followed by the others."""
        return Dialogues(
            ids=np.concatenate((self.ids, other.ids)),
            answer_mask=np.concatenate((self.answer_mask, other.answer_mask)),
            offsets=np.concatenate((self.offsets, other.offsets[1:] + self.offsets[-1])),
            validation=np.concatenate((self.validation, other.validation)),
            kinds=np.concatenate((self.kinds, other.kinds)),
        )

    @property
    def first_told(self) -> NDArray[np.bool_]:
        """Which dialogues have a prompt and first answer tokens that did not come before."""
        seen: set[bytes] = set()
        first = np.zeros(len(self), np.bool_)
        for index, (start, end) in enumerate(pairwise(self.offsets)):
            begun = start + int(self.answer_mask[start:end].argmax()) + SAME_ANSWER
            key = self.ids[start:begun].tobytes()
            first[index] = key not in seen
            seen.add(key)
        return first

    def _distinct(self) -> "Dialogues":
        """Return the dialogues that are `first_told`."""
        return self.kept(self.first_told)

    def kept(self, kept: NDArray[np.bool_]) -> "Dialogues":
        """Return those of the dialogues that are marked, at least one."""
        tokens = np.repeat(kept, self.lengths)
        return Dialogues(
            ids=self.ids[tokens],
            answer_mask=self.answer_mask[tokens],
            offsets=np.cumsum([0, *self.lengths[kept]]),
            validation=self.validation[kept],
            kinds=self.kinds[kept],
        )


def part_files(folder: Path) -> list[Path]:
    """Return the dialogue files of a folder, in the order of their numbers."""
    return sorted(folder.glob(PART_FILES))
