"""The table of costs, measured in rounds: target and drafter in turns, cache rows moved together.

A call by itself finds its weights in the processor's caches where the other engine's would be, and is up to a
quarter faster than in the loop.
"""

import math
import statistics
import time
from collections import abc
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poss_export.costs import Costs, Fingerprint
from poss_export.progress import Progress, silent
from poss_export.runtime.loop import advance, prefill
from poss_export.runtime.planning.planner import Plan
from poss_export.runtime.round import Round
from poss_export.runtime.sequence import Sequence
from poss_export.runtime.sessions.base import (
    DraftCall,
    DraftSession,
    TargetCall,
    TargetOutput,
    TargetSession,
)
from poss_export.runtime.tree import DraftTree

_AT_ONCE = 32  # tokens of each sequence that a call reads
_ROWS = (2, 16, 64, 256)  # new rows of a draft call; the first are those of most rounds


@dataclass(frozen=True)
class Effort:
    """What is measured, where it fits the capacity; after `seconds` turns end, but not before the first."""

    widths: tuple[int, ...]
    contexts: tuple[int, ...]
    repeats: int
    seconds: float = math.inf


QUICK = Effort((1, 2, 4, 8, 12, 16, 24), (128,), 3, seconds=0.7)
CAREFUL = Effort((1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32), (64, 512, 1536), 15)


def measure_costs(
    target: TargetSession,
    drafter: DraftSession | None,
    fingerprint: Fingerprint,
    *,
    vocab: int,
    chains: bool,
    effort: Effort = QUICK,
    progress: Progress = silent,
) -> Costs:
    """Return medians of rounds in turns, after one turn that warms up; both sessions are emptied.

    vocab: tokens to read are drawn from it. chains: whether trees that are verified must be chains.
    """
    capacity = target.capacity
    widths = target.widths or tuple(width for width in effort.widths if 2 * width <= capacity)
    contexts = [c for c in effort.contexts if c + widths[-1] <= capacity] or [max(capacity // 4, 1)]
    rows = [rows for rows in _ROWS if rows == _ROWS[0] or contexts[0] + rows <= capacity]
    rounds, drafts = list[tuple[float, ...]](), dict[int, list[float]]()
    for number, context in enumerate(contexts):
        behind = _Behind(target, drafter, vocab, context, chains)
        by_width, by_rows = _take_turns(behind, widths, rows if number == 0 else rows[:1], effort)
        rounds.append(tuple(map(statistics.median, by_width.values())))
        drafts = drafts or by_rows
        progress("measuring costs", number + 1, len(contexts), "")
    return Costs(
        fingerprint,
        contexts=tuple(contexts),
        widths=widths,
        rounds=tuple(rounds),
        rows=() if drafter is None else tuple(drafts),
        drafts=() if drafter is None else tuple(map(statistics.median, drafts.values())),
    )


def _take_turns(
    behind: "_Behind", widths: abc.Sequence[int], rows: abc.Sequence[int], effort: Effort
) -> tuple[dict[int, list[float]], dict[int, list[float]]]:
    """Return the milliseconds of rounds by width, and of draft calls by new rows."""
    rounds: dict[int, list[float]] = {width: [] for width in widths}
    drafts: dict[int, list[float]] = {count: [] for count in rows}
    narrow = widths[min(1, len(widths) - 1)]
    start = time.perf_counter()
    for turn in range(-1, effort.repeats):
        if turn > 0 and time.perf_counter() - start > effort.seconds:
            break
        calls = [(width, rows[0]) for width in widths] + [(narrow, count) for count in rows[1:]]
        for width, count in calls:
            rest, draft = behind.round(width, count)
            if turn < 0:
                continue
            if count == rows[0]:
                rounds[width].append(rest)
            if width > 1:
                drafts[count].append(draft)
    return rounds, drafts


_EACH = (1, 2, 4, 8)  # rows of each sequence, of several in one call
_SHARED = 16  # new rows of a draft call that others share; longer ones are seldom


def measure_together(
    target: TargetSession,
    drafter: DraftSession | None,
    alone: Costs,
    sequences: int,
    *,
    vocab: int,
    chains: bool,
    repeats: int = 3,
) -> Costs:
    """Return what rounds of so many sequences cost by the rows of all; both sessions are emptied.

    The cost of a draft call is each sequence's share of one for all.

    alone: the table of one sequence. vocab, chains: as in `measure_costs`.
    """
    tokens = np.random.default_rng(0).integers(0, vocab, max(_EACH) + 1)
    context = min(QUICK.contexts[0], target.capacity // 2)
    each = [rows for rows in _EACH if context + rows <= target.capacity]
    rounds = dict[int, list[float]]((rows, []) for rows in each)
    drafts = dict[int, list[float]]((rows, []) for rows in alone.rows if rows <= _SHARED)
    slots = range(sequences)
    features = _read_together(target, drafter, np.resize(tokens, context), slots)
    for _ in range(repeats + 1):
        for rows, taken in rounds.items():
            taken.append(_round_together(target, some_tree(tokens[:rows], chains), slots))
        for rows, taken in drafts.items():
            assert drafter is not None, "a table without a drafter has no rows"
            taken.append(_drafts_together(drafter, np.resize(features, (rows, features.shape[1])), slots))
    for session in (target, drafter):
        if session is not None:
            session.reset()
    return Costs(
        {**alone.fingerprint, "sequences": sequences},
        contexts=(context,),
        widths=tuple(sequences * rows for rows in each),
        rounds=(tuple(1000 * statistics.median(taken[1:]) for taken in rounds.values()),),
        rows=alone.rows,
        drafts=tuple(
            1000 * statistics.median(drafts[rows][1:]) / sequences if rows in drafts else one
            for rows, one in zip(alone.rows, alone.drafts, strict=True)
        ),
    )


def _read_together(
    target: TargetSession, drafter: DraftSession | None, ids: NDArray[np.int64], slots: range
) -> NDArray[Any]:
    """Empty the sessions and read the same ids in every slot; return the features of the last ones."""
    for session in (target, drafter):
        if session is not None:
            session.reset()
    for start in range(0, len(ids), _AT_ONCE):
        piece = DraftTree.chain(ids[start : start + _AT_ONCE])
        calls = [TargetCall(piece, np.array([0]), slot) for slot in slots]
        for slot, output in zip(slots, target.forward_all(calls), strict=True):
            target.commit(range(len(piece)), slot)
            if drafter is not None:
                drafter.propose(piece.tokens, output.features, slot)
    return output.features.copy()


def _round_together(target: TargetSession, tree: DraftTree, slots: range) -> float:
    """Return the seconds of a round that verifies a tree in every slot; it leaves nothing there."""
    before = [target.length(slot) for slot in slots]
    start = time.perf_counter()
    outputs = target.forward_all([TargetCall(tree, np.arange(len(tree)), slot) for slot in slots])
    for slot, output in enumerate(outputs):
        target.commit(_accept(tree, output, 0).path, slot)
    taken = time.perf_counter() - start
    for slot, length in zip(slots, before, strict=True):
        target.trim(length, slot)
    return taken


def _drafts_together(drafter: DraftSession, features: NDArray[Any], slots: range) -> float:
    """Return the seconds of drafting in every slot behind rows of these features; it leaves nothing there."""
    before = [drafter.length(slot) for slot in slots]
    tokens = np.zeros(len(features), np.int64)
    start = time.perf_counter()
    drafter.propose_all([DraftCall(tokens, features, slot) for slot in slots])
    taken = time.perf_counter() - start
    for slot, length in zip(slots, before, strict=True):
        drafter.trim(length, slot)
    return taken


def some_tree(tokens: NDArray[np.int64], chain: bool) -> DraftTree:
    """Return a tree of these tokens, the root first; siblings where it must not be a chain."""
    if chain or len(tokens) < 3:
        return DraftTree.chain(tokens)
    parents = [0, 0, *range(2, len(tokens) - 1)]
    return DraftTree.with_root(int(tokens[0]), tokens[1:], parents, np.zeros(len(tokens) - 1))


def read_context(target: TargetSession, drafter: DraftSession | None, sequence: Sequence) -> None:
    """Empty the sessions and read the sequence's prompt, the drafter all but its last row, which is kept."""
    for session in (target, drafter):
        if session is not None:
            session.reset()
    prefill(target, drafter, sequence)
    t, f = sequence.take_unread()
    if drafter is not None and len(t) > 1:
        drafter.propose(t[:-1], f[:-1], sequence.slot)
    sequence.keep(t[-1:], f[-1:])


class _Behind:
    """Rounds behind a context, each timed as often as it is asked for."""

    def __init__(
        self, target: TargetSession, drafter: DraftSession | None, vocab: int, context: int, chains: bool
    ) -> None:
        """Read `context` tokens."""
        self._target, self._drafter, self._context, self._chains = target, drafter, context, chains
        self._tokens = np.random.default_rng(0).integers(0, vocab, max(context, *CAREFUL.widths))
        sequence = self._sequence(_Script())
        read_context(target, drafter, sequence)
        self._read = 0 if drafter is None else drafter.length()
        self._t, self._f = sequence.take_unread()

    def round(self, width: int, rows: int) -> tuple[float, float]:
        """Return the milliseconds of a round without its draft call, and of that; plain steps have none."""
        target, drafter = self._target, self._drafter
        sequence = self._sequence(
            _Script(some_tree(self._tokens[:width], self._chains), drafts=drafter is not None and width > 1)
        )
        sequence.keep(np.resize(self._t, rows), np.resize(self._f, (rows, self._f.shape[1])))
        target.trim(self._context)
        if drafter is not None:
            drafter.trim(self._read)
        before = 0.0 if drafter is None else drafter.engine_seconds
        start = time.perf_counter()
        advance(target, drafter, sequence)
        whole = time.perf_counter() - start
        draft = 0.0 if drafter is None else drafter.engine_seconds - before
        return 1000 * (whole - draft), 1000 * draft

    def _sequence(self, script: "_Script") -> Sequence:
        return Sequence(self._tokens[: self._context], _accept, planner=script)


@dataclass(eq=False)
class _Script:
    """A planner whose proposals are given."""

    tree: DraftTree = field(default_factory=lambda: DraftTree.with_root(0))
    drafts: bool = False
    plan: Plan | None = None
    racing: bool = False

    def read(self, prompt: NDArray[np.int64]) -> None:
        """Need nothing."""

    def propose(self, sequence: Sequence, drafter: DraftSession | None, room: int) -> DraftTree:
        """Return the tree, behind a draft call or without."""
        if drafter is not None and self.drafts:
            sequence.draft(drafter)
        return self.tree

    def learn(self, done: Round) -> None:
        """Learn nothing."""


def _accept(tree: DraftTree, output: TargetOutput, position: int) -> Round:
    """Accept one drafted node; where there are siblings the later, whose cache row moves."""
    path = (0,) if len(tree) < 3 else (0, 1) if tree.is_chain else (0, 2)
    return Round(tree, path, int(output.next_tokens[-1]))
