"""The draft/verify loop; without a drafter every tree is its root, and the loop decodes plainly.

Letters: L committed tokens, t the tokens after rows that the drafter has not read, f the target's
features of those rows. The last of t is the root: emitted, not yet in the target's cache.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poss_export.runtime.sessions.base import DraftSession, Ints, TargetOutput, TargetSession
from poss_export.runtime.tree import DraftTree
from poss_export.runtime.verify import Verify


def speculate(
    target: TargetSession, drafter: DraftSession | None, prompt: Sequence[int], verify: Verify, chunk: int
) -> Iterator[list[int]]:
    """Yield the first token after `prompt`, then what every round emits: accepted tokens and a new root.

    Ends when the target's cache is full; the caller stops earlier by not asking for more. The prompt is
    read `chunk` tokens at a time. Both sessions must be empty.
    """
    t, f = prefill(target, drafter, np.asarray(prompt, dtype=np.int64), verify, chunk)
    yield [int(t[-1])]
    while (L := int(target.lengths[0])) < target.capacity:
        tree = DraftTree.with_root(int(t[-1])) if drafter is None else drafter.propose(t[None], f)[0]
        tree = tree.first(target.capacity - L)
        nodes = np.arange(len(tree))[None]
        output = target.forward(tree.tokens[None], tree.depths[None], tree.mask[None], nodes)
        path, bonus = verify(tree, output)
        target.commit([path])
        t, f = np.append(tree.tokens[path[1:]], bonus), output.features[:, path]
        yield t.tolist()


def prefill(
    target: TargetSession, drafter: DraftSession | None, prompt: Ints, verify: Verify, chunk: int
) -> tuple[Ints, NDArray[Any]]:
    """Read the prompt [length]; return t and f of its last chunk, which the first round proposes from."""
    for start in range(0, len(prompt), chunk):
        ids = prompt[start : start + chunk]
        end = start + len(ids)
        output = run_chunk(target, ids)
        target.commit([range(len(ids))])
        if drafter is not None and end < len(prompt):
            drafter.propose(prompt[None, start + 1 : end + 1], output.features)  # for its cache only
    root = verify(DraftTree.with_root(int(ids[-1])), output).bonus
    return np.append(ids[1:], root), output.features


def run_chunk(target: TargetSession, ids: Ints) -> TargetOutput:
    """Run a chunk of a prompt [length] behind the committed rows; only its last logits are wanted."""
    n = len(ids)
    return target.forward(ids[None], np.arange(n)[None], np.tri(n, dtype=bool)[None], np.array([[n - 1]]))
