"""What a round proposes: a plain step, looked-up candidates, a drafted chain or tree, and how much of it.

Nothing here knows the target's logits of the round that is planned, so whatever is chosen, the output stays
the target's own (docs/lossless-sampling.md).
"""

from collections import abc
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple, Protocol

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
from poss_export.runtime.verify import Drawn

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
    racing: bool  # whether drafts may know the random numbers that tokens will be drawn with

    def read(self, prompt: NDArray[np.int64]) -> None:
        """Read the prompt's ids."""

    def propose(self, sequence: "Sequence", drafter: DraftSession | None, room: int) -> DraftTree:
        """Return a tree of at most `room` nodes; the drafter is called or not."""

    def learn(self, done: Round) -> None:
        """Learn from a round what was right."""


class WholeTrees:
    """Verifies all that the drafter draws, every round; without a drafter every round is a plain step."""

    plan: Plan | None = None
    racing = True

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
    racing: bool = True  # where tokens are drawn, look at the random numbers that they are drawn with


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
        self._chains, self.planning, self.racing = chains, planning, planning.racing
        self._habit = Habit()
        self._drafted: DraftTree | None = None

    def read(self, prompt: NDArray[np.int64]) -> None:
        """Read the prompt's ids."""
        self._lookup.extend(prompt.tolist())

    def propose(self, sequence: "Sequence", drafter: DraftSession | None, room: int) -> DraftTree:
        """Return the tree that gains most; the drafter is called where that is expected to pay."""
        asked = Asked(sequence, self, drafter, room)
        costs = self._costs.by_width(sequence.position - 1)
        return propose_together([asked], costs, self._costs.draft, self._habit)[0]

    def looked_up(self, sequence: "Sequence") -> Candidates:
        """Return what can be had without the drafter."""
        candidates = Candidates(sequence.root)
        if self.planning.lookup:
            self._look_up(candidates, [0], sequence)
        self._drafted = None
        return candidates

    @property
    def can_draft(self) -> bool:
        """Whether it is known what drafts are worth."""
        return self._chances is not None

    def drafted(self, tree: DraftTree, sequence: "Sequence") -> Candidates:
        """Return what was drafted, with what was looked up behind the root and behind its best path."""
        assert self._chances is not None
        self._drafted = tree
        candidates = Candidates.drafted(tree, self._chances.of(tree))
        if self.planning.lookup and self.planning.grafting:
            path = candidates.best_path()
            self._look_up(candidates, [0], sequence)
            self._look_up(candidates, path, sequence)
        return candidates

    def order(self, candidates: Candidates) -> list[int]:
        """Return the nodes to choose from, those to take first in front."""
        return candidates.best_path() if self._chains else candidates.by_chance()

    def learn(self, done: Round) -> None:
        """Learn from a round what was right."""
        tokens = done.tokens.tolist()
        self._lookup.extend(tokens)
        if self._drafted is not None and self._chances is not None and self.planning.correcting:
            self._chances.learn(self._drafted, tokens)

    def _look_up(self, candidates: Candidates, path: list[int], sequence: "Sequence") -> None:
        """Hang what may follow a path of nodes behind it."""
        for found in self._lookup.continuations([candidates.tokens[node] for node in path[1:]]):
            chances: abc.Iterable[float] = self._lookup.chances(found)
            if self.racing and isinstance(drawn := sequence.verify, Drawn):
                chances = drawn.chances(sequence.position + len(path) - 1, found.tokens, chances)
            candidates.graft(path[-1], found.tokens, chances)


@dataclass(frozen=True, eq=False)
class Asked:
    """A sequence whose next tree is asked for, of at most `room` nodes; no drafter, no drafted nodes."""

    sequence: "Sequence"
    planner: AdaptivePlanner
    drafter: DraftSession | None
    room: int


def draft_all(sequences: "abc.Sequence[Sequence]", drafter: DraftSession) -> list[DraftTree]:
    """Return the drafter's tree behind the root of each, drawn together where the engine can."""
    return drafter.propose_all([sequence.last_unread(drafter) for sequence in sequences])


def propose_together(
    asked: abc.Sequence[Asked],
    costs: list[float],
    draft: abc.Callable[[int], float],
    habit: Habit,
    *,
    fills_up: bool = False,
) -> list[DraftTree]:
    """Return a tree for each, together those that emit most tokens in a millisecond of one shared call.

    costs: milliseconds of a round by the rows of all. draft: of drafting for one of them that reads so many
    rows. habit: what drafting was worth to as many. fills_up: whether each is filled up to the widest.
    """
    for one in asked:
        if one.drafter is None:
            one.sequence.take_unread()  # nobody will
    candidates = [one.planner.looked_up(one.sequence) for one in asked]
    chosen = _choose(asked, candidates, costs, fills_up=fills_up)
    plan = Plan(drafted=False, tokens=chosen.tokens, milliseconds=chosen.milliseconds)
    plain = costs[len(asked)] / len(asked)
    otherwise = plan.rate * plain
    usual = habit.drafts(otherwise)
    drafting = [number for number, one in enumerate(asked) if _drafts(one, usual)]
    if drafting and habit.tries and all(one.planner.planning.skipping for one in asked):
        # To catch up takes longer the more do, and a trial is for naught where drafting does not pay.
        drafting = [min(drafting, key=lambda number: asked[number].sequence.unread_rows)]
    if drafting:
        rows = [asked[number].sequence.unread_rows for number in drafting]
        _draft(asked, drafting, candidates)
        # A long catch-up is paid once, and says nothing of the rounds to come.
        usually = sum(draft(min(count, _CATCH_UP)) for count in rows)
        chosen = _choose(asked, candidates, costs, usually, fills_up=fills_up)
        all_so, times = chosen, len(asked) if len(drafting) == 1 else 1
        if times > 1:  # as if all were worth as much
            same = [candidates[drafting[0]]] * times
            all_so = _choose(asked, same, costs, times * usually, fills_up=fills_up)
        habit.drafted(all_so.tokens / (all_so.milliseconds + times * usually) * plain, otherwise)
        milliseconds = chosen.milliseconds + sum(map(draft, rows))
        plan = Plan(drafted=True, tokens=chosen.tokens, milliseconds=milliseconds)
    else:
        habit.skipped()
    for one in asked:
        one.planner.plan = plan
    return [found.tree(nodes) for found, nodes in zip(candidates, chosen.nodes, strict=True)]


def _drafts(one: Asked, usual: bool) -> bool:
    return one.drafter is not None and one.planner.can_draft and (usual or not one.planner.planning.skipping)


def _draft(asked: abc.Sequence[Asked], drafting: abc.Sequence[int], candidates: list[Candidates]) -> None:
    """Put what is drafted for these numbers in the place of what was looked up."""
    drafter = asked[drafting[0]].drafter  # which is that of all
    assert drafter is not None
    trees = draft_all([asked[number].sequence for number in drafting], drafter)
    for number, tree in zip(drafting, trees, strict=True):
        candidates[number] = asked[number].planner.drafted(tree, asked[number].sequence)


class _Choice(NamedTuple):
    """Nodes of each to verify, and what all are expected to give in a round that takes so long."""

    nodes: list[list[int]]
    tokens: float
    milliseconds: float  # without draft calls


def _choose(
    asked: abc.Sequence[Asked],
    candidates: abc.Sequence[Candidates],
    costs: list[float],
    draft: float = 0.0,
    *,
    fills_up: bool,
) -> _Choice:
    """Return what emits most in a millisecond behind draft calls of that cost.

    Every width is tried: costs rise in steps, and the best may lie behind one that does not pay. Where all
    are filled up to the widest, the next nodes of all cost as much as one of them.
    """
    least = len(asked)  # the roots
    ranked = [
        (rank, found.chances[node], number, node)
        for number, (one, found) in enumerate(zip(asked, candidates, strict=True))
        for rank, node in enumerate(one.planner.order(found)[1 : one.room], start=2)
    ]
    ranked.sort(key=lambda entry: entry[0] if fills_up else -entry[1])  # of equal ones parents stay first
    if fills_up:
        rows = [least, *(least * rank for rank, *_ in ranked)]
    else:
        rows = list(range(least, least + len(ranked) + 1))
    tokens = list(accumulate((chance for _, chance, *_ in ranked), initial=float(least)))
    priced = zip(tokens, (costs[count] + draft for count in rows if count < len(costs)), strict=False)
    rates = [emitted / cost for emitted, cost in priced]
    sizing = all(one.planner.planning.sizing for one in asked)
    more = rates.index(max(rates)) if sizing else len(rates) - 1
    nodes = [[0] for _ in asked]
    for _, _, number, node in ranked[:more]:
        nodes[number].append(node)
    return _Choice(nodes, tokens[more], costs[rows[more]])
