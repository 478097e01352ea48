"""Lossless acceptance: walk the tree from its root by what the target wants at every node.

A drafter proposes without chance, so accepting a child with the probability that the target gives its
token, and renormalising after a refusal, leaves the target's distribution as it is.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from poss_export.runtime.sampling import Logits, Sampling, draw, warp
from poss_export.runtime.sessions.base import TargetOutput
from poss_export.runtime.tree import DraftTree


class Verdict(NamedTuple):
    """The accepted path of node numbers, root first, and the target's own token after it."""

    path: list[int]
    bonus: int


Verify = Callable[[DraftTree, TargetOutput], Verdict]


def verifier(sampling: Sampling) -> Verify:
    """Return the acceptance rule of one generation; it owns the generation's random numbers."""
    if sampling.greedy:
        return lambda tree, output: verify_greedy(tree, output.next_tokens[0])
    rng = np.random.default_rng(sampling.seed)
    return lambda tree, output: verify_sampled(tree, output.logits[0], sampling, rng)


def verify_greedy(tree: DraftTree, next_tokens: NDArray[np.int64]) -> Verdict:
    """Accept while the target's likeliest token, next_tokens [nodes], is among a node's children."""
    path = [0]
    while True:
        y = next_tokens[path[-1]]
        accepted = next((child for child in tree.children[path[-1]] if tree.tokens[child] == y), None)
        if accepted is None:
            return Verdict(path, int(y))
        path.append(accepted)


def verify_sampled(tree: DraftTree, logits: Logits, sampling: Sampling, rng: np.random.Generator) -> Verdict:
    """Accept children by draft rank with the target's probability; logits: [nodes, vocab]."""
    path = [0]
    while True:
        q = warp(logits[path[-1]], sampling)
        accepted = _sample_child(tree, path[-1], q, rng)
        if accepted is None:
            return Verdict(path, draw(q, rng))
        path.append(accepted)


def _sample_child(tree: DraftTree, node: int, q: NDArray[np.float32], rng: np.random.Generator) -> int | None:
    """Return the accepted child of `node`, if any; refused tokens leave `q`, which keeps its scale."""
    for child in tree.children[node]:
        x = tree.tokens[child]
        p = q[x]
        if rng.random() * q.sum(dtype=np.float64) < p:
            return child
        q[x] = 0
        if p > 0 and not q.any():  # refusing what was certain: rounding
            return child
    return None
