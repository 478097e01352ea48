"""Lossless acceptance: walk the tree from its root by the token that the target wants at every node.

The target's own choice, greedy or drawn, is made as if there were no tree; the tree only says whether its
consequence is known already. So whatever is proposed, what is emitted is what the target alone emits
(docs/lossless-sampling.md).
"""

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from poss_export.runtime.round import Round
from poss_export.runtime.sampling import Noise, Sampling, draw, warp
from poss_export.runtime.sessions.base import Ints, TargetOutput
from poss_export.runtime.tree import DraftTree

# (tree, the target's output for its nodes, absolute position of the token after the root) -> round
Verify = Callable[[DraftTree, TargetOutput, int], Round]


def verifier(sampling: Sampling) -> Verify:
    """Return the acceptance rule of one answer; it owns the answer's random numbers."""
    if sampling.greedy:
        return lambda tree, output, _: walk(tree, lambda path: int(output.next_tokens[path[-1]]))
    return Drawn(sampling)


# How far the numbers decide for a drafter, whose shares are not the target's: fitted to 2,321 tokens of
# sampled answers to held-out dialogues (docs/decisions/0029-gumbel-drafts.md). A looked-up token runs against
# all others, whose numbers are not looked at: they count more than their share, for the best of them runs.
_KNOWN, _OTHERS = 0.85, 1.5


class Drawn:
    """The rule where tokens are drawn; proposals may know `noise`, which is fixed before them."""

    def __init__(self, sampling: Sampling) -> None:
        """Begin an answer."""
        self.sampling, self.noise = sampling, Noise(sampling.seed)

    def __call__(self, tree: DraftTree, output: TargetOutput, position: int) -> Round:
        """Return the round that the target makes of a tree."""
        logits = output.logits

        def wanted(path: list[int]) -> int:
            row = logits[path[-1]]
            return draw(warp(row, self.sampling), self.noise(position + len(path) - 1, len(row)))

        return walk(tree, wanted)

    def gumbel(self, position: int, tokens: Ints) -> NDArray[np.float32]:
        """Return what to add to the logarithms of the shares of `tokens` [...] at a position to come.

        The token with the largest logarithm and Gumbel noise, -log E, is the one that `draw` takes.
        """
        numbers = np.maximum(self.noise.ahead(position)[tokens], np.finfo(np.float32).tiny)
        known = np.float32(_KNOWN * min(self.sampling.temperature, 1.0))
        noise: NDArray[np.float32] = -known * np.log(numbers.astype(np.float32))
        return noise

    def chances(self, position: int, tokens: Iterable[int], shares: Iterable[float]) -> Iterator[float]:
        """Yield the chances of tokens of these shares that follow each other, the first at a position.

        The numbers of a position are made when its chance is asked for.
        """
        for here, (token, share) in enumerate(zip(tokens, shares, strict=True), start=position):
            weight = share * math.exp(self.gumbel(here, np.array([token]))[0])
            yield weight / max(weight + _OTHERS * (1 - share), 1e-9)


def walk(tree: DraftTree, wanted: Callable[[list[int]], int]) -> Round:
    """Accept while the token that the target wants behind a path of nodes is a child of its last."""
    path = [0]
    while True:
        y = wanted(path)
        accepted = next((child for child in tree.children[path[-1]] if tree.tokens[child] == y), None)
        if accepted is None:
            return Round(tree, tuple(path), y)
        path.append(accepted)
