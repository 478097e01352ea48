"""Passages: a target's own answers with its features, on which any drafter can be tried without the target.

What greedy decoding says does not depend on the drafter. So the rounds of any drafter can be told from one
answer: it drafts, and what the answer says is what the target would accept.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poss_export.calibration.record import Dialogue
from poss_export.errors import InputError
from poss_export.runtime.loop import read
from poss_export.runtime.round import Round
from poss_export.runtime.sessions.base import PREFILL_CHUNK, DraftSession, Ints, TargetSession
from poss_export.runtime.tree import DraftTree
from poss_export.runtime.verify import walk

_VERIFIED = 6  # width of a target's calls while it answers: a small tree is the cheapest way to its answer


@dataclass(frozen=True, eq=False)
class Passage:
    """A prompt and the target's answer to it.

    tokens: int64 [n], of both; the first `prompt` are the prompt's. features: [n - 1, hidden], of all but the
    last token, which the target has not read.
    """

    prompt: int
    tokens: Ints
    features: NDArray[Any]


def answer(
    target: TargetSession,
    drafter: DraftSession | None,
    prompt: Sequence[int] | Ints,
    longest: int,
    stop_ids: Collection[int] = (),
) -> Passage:
    """Return the target's greedy answer, made with entered sessions.

    It ends with the round that passes `longest` tokens or a stop token, or where the cache is full.
    """
    passage = _read(target, np.asarray(prompt, np.int64))
    tokens, features = passage.tokens, passage.features
    if drafter is not None:
        drafter.reset()
    said = tokens[len(prompt) :]
    while len(said) < longest and target.room() and not set(said.tolist()) & set(stop_ids):
        tree = _draw(drafter, tokens, features).first(min(_VERIFIED, target.room()))
        output = target.forward(tree)
        done = _accept(tree, output.next_tokens)
        target.commit(done.path)
        features = np.concatenate((features, output.features[list(done.path)]))
        tokens = np.concatenate((tokens, done.tokens))
        said = tokens[len(prompt) :]
    return Passage(len(prompt), tokens, features)


def reread(target: TargetSession, dialogue: Dialogue) -> Passage:
    """Return the answer of a dialogue that this very target gave, read at once instead of made again.

    Raises:
        InputError: the dialogue does not fit the capacity.
    """
    if dialogue.rows > target.capacity:
        raise InputError(
            f"the samples need a capacity of {dialogue.rows} tokens, the bundle's is {target.capacity}: "
            "record them with this bundle, or build with a larger capacity",
            options=("capacity",),
        )
    committed = (item.tree.tokens[list(item.path)] for item in dialogue.rounds)
    passage = _read(target, np.concatenate((dialogue.prompt, *committed)))
    return Passage(len(dialogue.prompt), passage.tokens, passage.features)


def play(drafter: DraftSession | None, passage: Passage) -> Iterator[Round]:
    """Yield the rounds that an entered drafter would make of an answer; None draws roots only.

    A last tree that reaches beyond the answer is left out: nobody knows what of it would be accepted.
    """
    if drafter is not None:
        drafter.reset()
    tokens, root = passage.tokens, passage.prompt
    while root + 1 < len(tokens):
        tree = _draw(drafter, tokens[: root + 1], passage.features[:root])
        if root + tree.depths.max() + 1 >= len(tokens):
            break
        done = _accept(tree, tokens[root + 1 + tree.depths])
        yield done
        root += len(done.path)


def _read(target: TargetSession, ids: Ints) -> Passage:
    """Return ids and the one token that the target says behind them."""
    target.reset()
    features = list[NDArray[Any]]()
    for _, output in read(target, ids):
        features.append(output.features.copy())
        following = output.next_tokens[-1:].copy()
    return Passage(len(ids), np.concatenate((ids, following)), np.concatenate(features))


def _accept(tree: DraftTree, wanted: Ints) -> Round:
    """Return the round of a tree; `wanted` is the target's token behind each node, if it is reached."""
    return walk(tree, lambda path: int(wanted[path[-1]]))


def _draw(drafter: DraftSession | None, tokens: Ints, features: NDArray[Any]) -> DraftTree:
    """Return a tree behind the last token; the drafter reads the rows that it lacks in chunks."""
    if drafter is None:
        return DraftTree.with_root(int(tokens[-1]))
    for start in range(drafter.length(), len(features), PREFILL_CHUNK):
        rows = slice(start, min(start + PREFILL_CHUNK, len(features)))
        tree = drafter.propose(tokens[rows.start + 1 : rows.stop + 1], features[rows])
    return tree
