"""The draft/verify loop: what a round proposes is its planner's choice, what it emits is the target's."""

from collections.abc import Iterator

import numpy as np

from poss_export.runtime.round import Round
from poss_export.runtime.sequence import Sequence
from poss_export.runtime.sessions.base import PREFILL_CHUNK, DraftSession, Ints, TargetOutput, TargetSession
from poss_export.runtime.tree import DraftTree


def speculate(
    target: TargetSession, drafter: DraftSession | None, sequence: Sequence, chunk: int = PREFILL_CHUNK
) -> Iterator[Round]:
    """Yield the rounds of an answer, the prompt's own first, until the target's cache is full.

    The caller stops earlier by not asking for more. The sequence's slot must be empty in both sessions.
    """
    yield prefill(target, drafter, sequence, chunk)
    while target.room(sequence.slot):
        yield advance(target, drafter, sequence)


def advance(target: TargetSession, drafter: DraftSession | None, sequence: Sequence) -> Round:
    """Propose a tree, verify it in one pass of the target, commit the accepted path."""
    slot = sequence.slot
    tree = sequence.planner.propose(sequence, drafter, target.room(slot))
    return settle(target, sequence, tree, target.forward(tree, slot=slot))


def settle(target: TargetSession, sequence: Sequence, tree: DraftTree, output: TargetOutput) -> Round:
    """Verify a tree by what the target made of it, commit the accepted path, and go on behind it."""
    done = sequence.verify(tree, output, sequence.position)
    target.commit(done.path, sequence.slot)
    sequence.advance(done, output)
    return done


def prefill(
    target: TargetSession, drafter: DraftSession | None, sequence: Sequence, chunk: int = PREFILL_CHUNK
) -> Round:
    """Read the prompt `chunk` tokens at a time; return the round that its last token makes, a plain step."""
    for start, output in read(target, sequence.prompt, sequence.slot, chunk):
        first = sequence.read(start, output, drafter)
    assert first is not None, "a prompt has tokens"
    return first


def read(
    target: TargetSession, ids: Ints, slot: int = 0, chunk: int = PREFILL_CHUNK
) -> Iterator[tuple[int, TargetOutput]]:
    """Commit ids `chunk` tokens at a time; yield where each chunk starts, and what came of it.

    Only the last logits of a chunk are asked for.
    """
    for start in range(0, len(ids), chunk):
        tokens = ids[start : start + chunk]
        output = target.forward(DraftTree.chain(tokens), np.array([len(tokens) - 1]), slot)
        target.commit(range(len(tokens)), slot)
        yield start, output
