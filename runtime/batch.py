"""Several answers in the making, each in a slot of its own, in one call of the target a round.

Every call carries a tree of each answer that has begun, and beside them pieces of prompts, so that no answer
waits for another's prompt and no prompt for another's answer (continuous batching with chunked prefill).
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from poss_export.costs import Costs
from poss_export.runtime.loop import settle
from poss_export.runtime.planning.habit import Habit
from poss_export.runtime.planning.planner import (
    AdaptivePlanner,
    Asked,
    WholeTrees,
    draft_all,
    propose_together,
)
from poss_export.runtime.round import Round
from poss_export.runtime.sequence import Sequence
from poss_export.runtime.sessions.base import (
    PREFILL_CHUNK,
    DraftSession,
    TargetCall,
    TargetOutput,
    TargetSession,
)
from poss_export.runtime.tree import DraftTree

BESIDE = 64  # rows of prompts in a call that others wait for: it takes about twice a plain step


class BatchCosts(Protocol):
    """What rounds of several sequences cost."""

    def together(self, sequences: int) -> Costs:
        """Return the table of so many, by the rows of all."""


class Batch:
    """Sequences at work in the slots of the sessions."""

    def __init__(self, target: TargetSession, costs: BatchCosts, slots: int) -> None:
        """Begin with that many slots of the sessions, all free."""
        self._target, self._costs, self._slots = target, costs, slots
        self._drafters: dict[Sequence, DraftSession | None] = {}  # of those at work, the oldest first
        self._habits = dict[int, Habit]()  # by sequences that draft together

    def __len__(self) -> int:
        """Return how many are at work."""
        return len(self._drafters)

    @property
    def has_room(self) -> bool:
        """Whether a slot is free."""
        return len(self) < self._slots

    def admit(self, sequence: Sequence, drafter: DraftSession | None) -> None:
        """Let a sequence begin, in the first free slot; without a drafter nothing is drafted for it."""
        taken = {other.slot for other in self._drafters}
        sequence.slot = next(slot for slot in range(self._slots) if slot not in taken)
        self._drafters[sequence] = drafter

    def retire(self, sequence: Sequence) -> None:
        """Free the slot of a sequence, whether it has ended or not."""
        for session in (self._target, self._drafters.pop(sequence)):
            if session is not None:
                session.release(sequence.slot)

    def step(self) -> dict[Sequence, Round]:
        """Run one call; return the rounds that it made: of a prompt only its last piece makes one."""
        reading = [sequence for sequence in self._drafters if not sequence.emitted]
        answering = [sequence for sequence in self._drafters if sequence.emitted]
        calls = self._pieces(reading, BESIDE if answering else PREFILL_CHUNK)
        beside = sum(len(call.tree) for call in calls.values())
        calls |= self._trees(answering, beside)
        outputs = self._target.forward_all(list(calls.values()))
        rounds = {}
        for (sequence, call), output in zip(calls.items(), outputs, strict=True):
            if (done := self._take(sequence, call.tree, output)) is not None:
                rounds[sequence] = done
        return rounds

    def _pieces(self, reading: list[Sequence], rows: int) -> dict[Sequence, TargetCall]:
        """Return the next pieces of prompts, so many rows in all; the oldest goes first."""
        calls = {}
        for sequence in reading:
            start = self._target.length(sequence.slot)
            piece = sequence.prompt[start : start + rows]
            if len(piece):
                last = np.array([len(piece) - 1])
                calls[sequence] = TargetCall(DraftTree.chain(piece), last, sequence.slot)
            rows -= len(piece)
        return calls

    def _trees(self, answering: list[Sequence], beside: int) -> Mapping[Sequence, TargetCall]:
        """Return what is verified for each; `beside`: rows of prompts in the same call."""
        trees, whole, asked = dict[Sequence, DraftTree](), list[Sequence](), list[Asked]()
        for sequence in answering:
            drafter, room = self._drafters[sequence], self._target.room(sequence.slot)
            if isinstance(sequence.planner, AdaptivePlanner):
                asked.append(Asked(sequence, sequence.planner, drafter, room))
            elif drafter is not None and isinstance(sequence.planner, WholeTrees):
                whole.append(sequence)
            else:
                trees[sequence] = sequence.planner.propose(sequence, drafter, room)
        if whole and (drafter := self._drafters[whole[0]]) is not None:
            for sequence, tree in zip(whole, draft_all(whole, drafter), strict=True):
                trees[sequence] = tree.first(self._target.room(sequence.slot))
        if asked:
            table, context = self._costs.together(len(self)), max(one.sequence.position for one in asked)
            costs = _behind(table.by_width(context), beside + sum(map(len, trees.values())), len(asked))
            habit = self._habits.setdefault(len(asked), Habit(hopes=len(asked) == 1))
            together = propose_together(asked, costs, table.draft, habit, fills_up=self._target.fills_up)
            trees |= {one.sequence: tree for one, tree in zip(asked, together, strict=True)}
        return {
            sequence: TargetCall(trees[sequence], np.arange(len(trees[sequence])), sequence.slot)
            for sequence in answering
        }

    def _take(self, sequence: Sequence, tree: DraftTree, output: TargetOutput) -> Round | None:
        """Commit what is kept of a call, and let the sequence go on from there."""
        if sequence.emitted:
            return settle(self._target, sequence, tree, output)
        start = self._target.length(sequence.slot)
        self._target.commit(range(len(tree)), sequence.slot)
        return sequence.read(start, output, self._drafters[sequence])


def _behind(costs: list[float], rows: int, least: int) -> list[float]:
    """Return the cost of a round by its rows beside so many others; beyond the table it rises as before.

    What `least` rows, which there are in any case, cost more beside others is paid whatever is proposed. It
    is left out: in a dear call candidates would seem cheap that cost more than the plain steps they save.
    """
    slope = costs[-1] - costs[-2] if len(costs) > 1 else 0.0
    longer = costs + [costs[-1] + slope * more for more in range(1, rows + 1)]
    sunk = longer[rows + least] - costs[least] if least < len(costs) else 0.0
    return [cost - sunk for cost in longer[rows:]]
