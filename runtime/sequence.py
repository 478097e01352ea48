"""One answer in the making, as the loop sees it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poss_export.runtime.round import Round
from poss_export.runtime.sessions.base import TargetOutput
from poss_export.runtime.transcript import Transcript
from poss_export.runtime.verify import Verify


@dataclass(eq=False)
class Sequence:
    """What one answer needs between two rounds, whatever other sequences do meanwhile.

    t: int64 [rows], the tokens after the rows that the drafter has not read; the last is the root: emitted,
    not yet in the target's cache. f: [rows, hidden], the target's features of those rows. verify: how tokens
    are chosen; it owns the random numbers. slot: where in the caches its rows lie. transcript: what becomes
    of the emitted tokens, and when the answer ends; without one it goes on to the last row.
    """

    prompt: NDArray[np.int64]  # ids [length]
    verify: Verify
    transcript: Transcript | None = None
    slot: int = 0
    t: NDArray[np.int64] = field(init=False)  # both from the prompt on
    f: NDArray[Any] = field(init=False)
    emitted: int = field(default=0, init=False)  # tokens

    @property
    def root(self) -> int:
        """The newest token."""
        return int(self.t[-1])

    @property
    def position(self) -> int:
        """The absolute position of the token that comes next; the prompt begins at 0."""
        return len(self.prompt) + self.emitted

    @property
    def ended(self) -> bool:
        """Whether nothing more is wanted."""
        return self.transcript is not None and self.transcript.finish_reason is not None

    def begin(self, unread: NDArray[np.int64], output: TargetOutput, first: Round) -> None:
        """Go on from the last chunk of the prompt, whose rows the drafter reads with the first proposal.

        unread: int64 [rows], the chunk's tokens after its first. output: of the chunk.
        """
        self.t, self.f = np.append(unread, first.bonus), output.features.copy()
        self.emitted += 1

    def advance(self, done: Round, output: TargetOutput) -> None:
        """Go on behind a round; `output` is that of its tree."""
        self.t, self.f = done.tokens, output.features[list(done.path)]
        self.emitted += len(done.path)
