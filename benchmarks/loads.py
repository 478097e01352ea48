"""How requests come, and what becomes of each, whoever answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from poss_export.runtime.generation import Generation


@dataclass(frozen=True)
class Load:
    """How requests come: from so many clients, each after its last answer, or at a rate a second."""

    clients: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        """Return it in words."""
        return f"{self.clients} clients" if self.clients is not None else f"{self.rate:g} a second"

    def arrivals(self, count: int, seed: int) -> list[float]:
        """Return the seconds at which so many requests come by themselves: none where clients wait."""
        if self.rate is None:
            return []
        gaps: list[float] = np.random.default_rng(seed).exponential(1 / self.rate, count).cumsum().tolist()
        return gaps


@dataclass(frozen=True)
class Answered:
    """An answer as its client saw it; seconds are since the load began."""

    number: int  # of the request
    token_ids: tuple[int, ...]
    asked: float
    pieces: tuple[tuple[float, int], ...]  # when each came, and its tokens
    made: Generation | None = None  # of ours

    @property
    def first(self) -> float:
        """Seconds until the first text."""
        return self.pieces[0][0] - self.asked

    @property
    def between(self) -> list[float]:
        """Seconds between tokens, those of a piece sharing its time alike."""
        gaps = zip(self.pieces, self.pieces[1:], strict=False)
        return [(late - early) / tokens for (early, _), (late, tokens) in gaps for _ in range(tokens)]


@dataclass(frozen=True)
class Run:
    """A load that was answered once; `parted`: the answers that are not the target's alone, by place."""

    seconds: float
    answered: Sequence[Answered]
    parted: dict[str, dict[str, object]]

    @property
    def tokens_per_second(self) -> float:
        """Of all clients together."""
        return sum(len(one.token_ids) for one in self.answered) / self.seconds
