"""What must hold for sessions, however tokens came into their caches; every law returns a difference."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poss_export.evaluation.differences import difference, largest, tree_difference
from poss_export.runtime.sessions.base import (
    DraftCall,
    DraftSession,
    Ints,
    TargetCall,
    TargetOutput,
    TargetSession,
)
from poss_export.runtime.tree import DraftTree

PREFIX = 12  # tokens before the tree
PARENTS = np.array([0, 0, 1, 1, 2, 3, 5])
PATHS = ([0, 1, 3, 6], [0, 1, 4], [0, 2, 5, 7])  # root to leaf
#   0 ─┬─ 1 ─┬─ 3 ─ 6
#      │     └─ 4
#      └─ 2 ─── 5 ─ 7
TOKENS = PREFIX + len(PARENTS) + 2  # that the laws need: prefix, tree with root, one to go on with


def append(target: TargetSession, tokens: Sequence[int] | Ints) -> TargetOutput:
    """Run tokens behind the committed rows and commit them all."""
    output = target.forward(DraftTree.chain(tokens))
    target.commit(range(len(tokens)))
    return output


def steps_equal_one_call(target: TargetSession, tokens: Ints) -> float:
    """N tokens at once = n single steps, behind a committed one: into empty caches prompts alone are read."""
    target.reset()
    append(target, tokens[:1])
    expected = _results(target.forward(DraftTree.chain(tokens[1:])))
    single = [_results(append(target, tokens[i : i + 1])) for i in range(1, len(tokens))]
    return largest(
        difference(np.concatenate(found), all_at_once)
        for found, all_at_once in zip(zip(*single, strict=True), expected, strict=True)
    )


def next_token_is_likeliest(target: TargetSession, tokens: Ints) -> float:
    """The token that a greedy answer takes after each node = one of those with the highest logit."""
    target.reset()
    append(target, tokens[:PREFIX])
    output = target.forward(_tree(tokens))
    logits = output.logits.astype(np.float64)
    chosen = np.take_along_axis(logits, output.next_tokens[:, None], axis=-1)[:, 0]
    return difference(chosen, logits.max(axis=-1))


def tree_equals_its_paths(target: TargetSession, tokens: Ints) -> float:
    """Every node of a tree = the last token of the path to it."""
    tree = _tree(tokens)
    target.reset()
    append(target, tokens[:PREFIX])
    found = _results(target.forward(tree))  # commits nothing: the next call writes over its rows
    errors = []
    for path in PATHS:
        expected = _results(target.forward(DraftTree.chain(tree.tokens[path])))
        errors += [difference(result[path], one) for result, one in zip(found, expected, strict=True)]
    return largest(errors)


def commit_equals_fresh_run(target: TargetSession, tokens: Ints) -> float:
    """What follows a committed path = what follows the same tokens in empty caches."""
    tree, last = _tree(tokens), tokens[-1:]
    errors = []
    for path in PATHS:
        target.reset()
        append(target, tokens[:PREFIX])
        target.forward(tree)
        target.commit(path)
        found = _results(append(target, last))
        target.reset()
        fresh = _results(append(target, np.concatenate((tokens[:PREFIX], tree.tokens[path], last))))
        errors += [difference(one, all_of_it[-1:]) for one, all_of_it in zip(found, fresh, strict=True)]
    return largest(errors)


@dataclass(frozen=True)
class Asked:
    """What a sequence has read, int64 [tokens], a call behind it, and `more` [1] behind its first node."""

    text: Ints
    call: TargetCall
    more: Ints

    def alone(self) -> "Asked":
        """Return the same in the first slot."""
        return replace(self, call=self.call._replace(slot=0))


def ask_beside(tokens: Ints, slots: int) -> list[Asked]:
    """Return something else for every slot: chains, trees, ends of prompts, behind texts of all lengths.

    No two texts have a token in common at the same place, so that no row of a cache is another slot's.
    """
    asked = []
    for slot in range(slots):
        own, read = np.roll(tokens, slot), 1 + slot % PREFIX
        tree = DraftTree.chain(own[read : read + 1 + slot % len(PARENTS)])
        if slot % 3 == 1:
            nodes = own[read + 1 : read + 1 + len(PARENTS)]
            tree = DraftTree.with_root(int(own[read]), nodes, PARENTS, np.zeros(len(nodes)))
        wanted = np.arange(len(tree))[-1 if slot % 3 == 2 else 0 :]
        asked.append(Asked(own[:read], TargetCall(tree, wanted, slot), own[-1:]))
    return asked


def run_together(target: TargetSession, asked: Sequence[Asked]) -> list[tuple[NDArray[Any], ...]]:
    """Return features and logits of all calls, run in one where the session can, and of one more behind."""
    target.reset()
    for one in asked:
        target.forward(DraftTree.chain(one.text), slot=one.call.slot)
        target.commit(range(len(one.text)), one.call.slot)
    found = [_results(output) for output in target.forward_all([one.call for one in asked])]
    for one in asked:
        target.commit([0], one.call.slot)
    last = [TargetCall(DraftTree.chain(one.more), np.arange(1), one.call.slot) for one in asked]
    return [
        (*first, *_results(output)) for first, output in zip(found, target.forward_all(last), strict=True)
    ]


def beside_others_equals_alone(target: TargetSession, tokens: Ints) -> float:
    """What a sequence's calls give beside those of all other slots = what they give alone."""
    asked = ask_beside(tokens, target.slots)
    alone = [run_together(target, [one])[0] for one in asked]
    return largest(
        difference(one, other)
        for found, expected in zip(run_together(target, asked), alone, strict=True)
        for one, other in zip(found, expected, strict=True)
    )


def draft_beside_others_equals_alone(target: TargetSession, drafter: DraftSession, tokens: Ints) -> float:
    """The tree drawn beside those of all other slots = the tree drawn alone."""
    target.reset()
    features, _ = _results(append(target, tokens))
    found = []
    for together in (True, False):
        drafter.reset()
        calls = []
        for slot in range(drafter.slots):
            prefix, more = 1 + slot % PREFIX, 1 + slot % len(PARENTS)
            next_tokens, own = np.roll(tokens, -1 - slot), np.roll(features, -slot, axis=0)  # as `ask_beside`
            drafter.propose(next_tokens[:prefix], own[:prefix], slot)
            rows = slice(prefix, prefix + more)
            calls.append(DraftCall(next_tokens[rows], own[rows], slot))
        found.append(drafter.propose_all(calls) if together else [drafter.propose(*call) for call in calls])
    return largest(map(tree_difference, *found))


def draft_parts_equal_one_call(target: TargetSession, drafter: DraftSession, tokens: Ints) -> float:
    """The tree after n rows at once = the tree after the same rows in two calls."""
    target.reset()
    features, _ = _results(append(target, tokens[:-1]))
    drafter.reset()
    expected = drafter.propose(tokens[1:], features)
    drafter.reset()
    drafter.propose(tokens[1 : PREFIX + 1], features[:PREFIX])
    found = drafter.propose(tokens[PREFIX + 1 :], features[PREFIX:])
    return tree_difference(found, expected)


def _tree(tokens: Ints) -> DraftTree:
    root, rest = tokens[PREFIX], tokens[PREFIX + 1 : -1]
    return DraftTree.with_root(int(root), rest, PARENTS, np.zeros(len(rest), np.float32))


def _results(output: TargetOutput) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return copies of features and logits, [seq, ...] each: the session's next call overwrites its own."""
    return output.features.copy(), output.logits.copy()
