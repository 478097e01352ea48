"""One answer in the making, as the loop sees it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poss_export.runtime.planning.planner import WHOLE_TREES, Planner
from poss_export.runtime.round import Round
from poss_export.runtime.sessions.base import PREFILL_CHUNK, DraftCall, DraftSession, TargetOutput
from poss_export.runtime.transcript import Transcript
from poss_export.runtime.tree import DraftTree
from poss_export.runtime.verify import Drawn, Verify


@dataclass(eq=False)
class Sequence:
    """What one answer needs between two rounds, whatever other sequences do meanwhile.

    root: the newest token: emitted, not yet in the target's cache. verify: how tokens are chosen; it owns the
    random numbers. planner: what a round proposes. slot: where in the caches its rows lie. transcript: what
    becomes of the emitted tokens, and when the answer ends; without one it goes on to the last row.
    """

    prompt: NDArray[np.int64]  # ids [length]
    verify: Verify
    transcript: Transcript | None = None
    slot: int = 0
    planner: Planner = WHOLE_TREES
    root: int = field(init=False)  # from the prompt on
    emitted: int = field(default=0, init=False)  # tokens
    _unread: list[tuple[NDArray[np.int64], NDArray[Any]]] = field(default_factory=list, init=False)

    @property
    def position(self) -> int:
        """The absolute position of the token that comes next; the prompt begins at 0."""
        return len(self.prompt) + self.emitted

    @property
    def ended(self) -> bool:
        """Whether nothing more is wanted."""
        return self.transcript is not None and self.transcript.finish_reason is not None

    @property
    def unread_rows(self) -> int:
        """Rows that the drafter has not read."""
        return sum(len(t) for t, _ in self._unread)

    def take_unread(self) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Return t and f, which the drafter reads now.

        t: int64 [rows], the tokens after the rows that it has not read; the last is the root. f: [rows,
        feature_size], the target's features of those rows.
        """
        t, f = (np.concatenate(parts) for parts in zip(*self._unread, strict=True))
        self._unread.clear()
        return t, f

    def draft(self, drafter: DraftSession) -> DraftTree:
        """Return the drafter's tree behind the root; it reads what it has not read, in chunks."""
        return drafter.propose(*self.last_unread(drafter))

    def last_unread(self, drafter: DraftSession) -> DraftCall:
        """Return the call that draws a tree; the drafter reads what is more than that holds before it."""
        t, f = self.take_unread()
        last = (len(t) - 1) // PREFILL_CHUNK * PREFILL_CHUNK
        for start in range(0, last, PREFILL_CHUNK):
            rows = slice(start, start + PREFILL_CHUNK)
            drafter.propose(t[rows], f[rows], self.slot)
        return DraftCall(t[last:], f[last:], self.slot, self._noise(drafter))

    def _noise(self, drafter: DraftSession) -> NDArray[np.float32] | None:
        """Return what decides for the drafted tokens of each depth where tokens are drawn."""
        if drafter.draft_ids is None or not self.planner.racing or not isinstance(self.verify, Drawn):
            return None
        ids, first = drafter.draft_ids, self.position
        return np.stack([self.verify.gumbel(first + depth, ids) for depth in range(drafter.depth)])

    def keep(self, t: NDArray[np.int64], f: NDArray[Any]) -> None:
        """Keep rows that the drafter has not read, in the words of `take_unread`."""
        self.root = int(t[-1])
        self._unread.append((t, f))

    def read(self, start: int, output: TargetOutput, drafter: DraftSession | None) -> Round | None:
        """Go on behind a chunk of the prompt; return the round that its last token makes, a plain step.

        The drafter reads the rows of a chunk for its cache only; those of the last with its first proposal.
        start: where in the prompt the chunk begins. output: of the chunk.
        """
        end = start + len(output.features)
        if end < len(self.prompt):
            if drafter is not None:
                drafter.propose(self.prompt[start + 1 : end + 1], output.features, self.slot)
            return None
        first = self.verify(DraftTree.with_root(int(self.prompt[-1])), output, self.position)
        self.keep(np.append(self.prompt[start + 1 :], first.bonus), output.features.copy())
        self.emitted += 1
        self.planner.read(self.prompt)
        self.planner.learn(first)
        return first

    def advance(self, done: Round, output: TargetOutput) -> None:
        """Go on behind a round; `output` is that of its tree."""
        self.keep(done.tokens, output.features[list(done.path)])
        self.emitted += len(done.path)
        self.planner.learn(done)
