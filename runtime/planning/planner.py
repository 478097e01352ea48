"""What a round proposes: a plain step, looked-up candidates, a drafted chain or tree, and how much of it.

Nothing here knows the target's logits of the round that is planned, so whatever is chosen, the output stays
the target's own (docs/lossless-sampling.md).
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from poss_export.costs import Costs
from poss_export.runtime.planning.candidates import Candidates
from poss_export.runtime.planning.chances import DraftChances
from poss_export.runtime.planning.habit import Habit
from poss_export.runtime.planning.lookup import Lookup
from poss_export.runtime.round import Round
from poss_export.runtime.sessions.base import DraftSession
from poss_export.runtime.tree import DraftTree

if TYPE_CHECKING:
    from poss_export.runtime.sequence import Sequence

_CATCH_UP = 32  # rows


@dataclass(frozen=True)
class Plan:
    """What was chosen for a round, and what was expected of it."""

    drafted: bool  # the drafter was called
    tokens: float  # emitted
    milliseconds: float

    @property
    def rate(self) -> float:
        """Tokens a millisecond."""
        return self.tokens / self.milliseconds


class Planner(Protocol):
    """Chooses the tree of each round of one answer."""

    plan: Plan | None  # of the last round; None where nothing is expected of rounds

    def read(self, prompt: NDArray[np.int64]) -> None:
        """Read the prompt's ids."""

    def propose(self, sequence: "Sequence", drafter: DraftSession | None, room: int) -> DraftTree:
        """Return a tree of at most `room` nodes; the drafter is called or not."""

    def learn(self, done: Round) -> None:
        """Learn from a round what was right."""


class WholeTrees:
    """Verifies all that the drafter draws, every round; without a drafter every round is a plain step."""

    plan: Plan | None = None

    def read(self, prompt: NDArray[np.int64]) -> None:
        """Need nothing of the prompt."""

    def propose(self, sequence: "Sequence", drafter: DraftSession | None, room: int) -> DraftTree:
        """Return what the drafter draws."""
        if drafter is None:
            sequence.take_unread()  # nobody will
            return DraftTree.with_root(sequence.root)
        return sequence.draft(drafter).first(room)

    def learn(self, done: Round) -> None:
        """Learn nothing."""


WHOLE_TREES = WholeTrees()  # it remembers nothing, so one serves all


@dataclass(frozen=True)
class Planning:
    """What a planner may do; each can be taken away, to see what it is worth (docs/planning.md)."""

    lookup: bool = True  # propose what was looked up
    grafting: bool = True  # beside what was drafted too, not only in its place
    sizing: bool = True  # leave out nodes that cost more than they give
    skipping: bool = True  # not draft where that pays less
    correcting: bool = True  # learn from an answer how likely its drafts are


ADAPTIVE = Planning()


class AdaptivePlanner:
    """Proposes what emits most tokens in a millisecond, by a table of costs and the chances of candidates."""

    def __init__(
        self,
        costs: Costs,
        chances: DraftChances | None,
        lookup: Lookup,
        *,
        chains: bool = False,
        planning: Planning = ADAPTIVE,
    ) -> None:
        """Begin an answer.

        chances: of drafted nodes; without them nothing is drafted. chains: whether trees must be chains.
        """
        self.plan: Plan | None = None
        self._costs, self._chances, self._lookup = costs, chances, lookup
        self._chains, self._planning = chains, planning
        self._habit = Habit()
        self._drafted: DraftTree | None = None

    def read(self, prompt: NDArray[np.int64]) -> None:
        """Read the prompt's ids."""
        self._lookup.extend(prompt.tolist())

    def propose(self, sequence: "Sequence", drafter: DraftSession | None, room: int) -> DraftTree:
        """Return the tree that gains most; the drafter is called where that is expected to pay."""
        costs = self._costs.by_width(sequence.position - 1)[: room + 1]
        candidates = Candidates(sequence.root)
        if self._planning.lookup:
            self._look_up(candidates, [0])
        nodes, self.plan = self._choose(candidates, costs)
        self._drafted = None
        otherwise = self.plan.rate * costs[1]
        if drafter is None:
            sequence.take_unread()  # nobody will
        if drafter is None or self._chances is None or not self._drafts(otherwise):
            self._habit.skipped()
            return candidates.tree(nodes)
        rows = sequence.unread_rows
        self._drafted = sequence.draft(drafter)
        candidates = self._with_drafts(self._drafted, self._chances)
        # A long catch-up is paid once, and says nothing of the rounds to come.
        nodes, plan = self._choose(candidates, costs, self._costs.draft(min(rows, _CATCH_UP)))
        self._habit.drafted(plan.rate * costs[1], otherwise)
        milliseconds = costs[len(nodes)] + self._costs.draft(rows)
        self.plan = Plan(drafted=True, tokens=plan.tokens, milliseconds=milliseconds)
        return candidates.tree(nodes)

    def learn(self, done: Round) -> None:
        """Learn from a round what was right."""
        tokens = done.tokens.tolist()
        self._lookup.extend(tokens)
        if self._drafted is not None and self._chances is not None and self._planning.correcting:
            self._chances.learn(self._drafted, tokens)

    def _drafts(self, otherwise: float) -> bool:
        return not self._planning.skipping or self._habit.drafts(otherwise)

    def _with_drafts(self, drafted: DraftTree, chances: DraftChances) -> Candidates:
        """Return what was drafted, with what was looked up behind the root and behind its best path."""
        candidates = Candidates.drafted(drafted, chances.of(drafted))
        if self._planning.lookup and self._planning.grafting:
            path = candidates.best_path()
            self._look_up(candidates, [0])
            self._look_up(candidates, path)
        return candidates

    def _look_up(self, candidates: Candidates, path: list[int]) -> None:
        """Hang what may follow a path of nodes behind it."""
        for found in self._lookup.continuations([candidates.tokens[node] for node in path[1:]]):
            candidates.graft(path[-1], found.tokens, self._lookup.chances(found))

    def _choose(
        self, candidates: Candidates, costs: list[float], draft: float = 0.0
    ) -> tuple[list[int], Plan]:
        """Return the nodes to verify, and what they are expected to give behind a draft call of that cost.

        Every width is tried: costs rise in steps, and the best may lie behind one that does not pay.
        """
        order = candidates.best_path() if self._chains else candidates.by_chance()
        tokens = list(accumulate(candidates.chances[node] for node in order[: len(costs) - 1]))
        rates = [emitted / (cost + draft) for emitted, cost in zip(tokens, costs[1:], strict=False)]
        width = 1 + (rates.index(max(rates)) if self._planning.sizing else len(rates) - 1)
        return order[:width], Plan(draft > 0, tokens[width - 1], costs[width] + draft)
