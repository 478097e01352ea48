"""Lossless acceptance: walk the tree from its root by the token that the target wants at every node.

The target's own choice, greedy or drawn, is made as if there were no tree; the tree only says whether its
consequence is known already. So whatever is proposed, what is emitted is what the target alone emits
(docs/lossless-sampling.md).
"""

from collections.abc import Callable

from poss_export.runtime.round import Round
from poss_export.runtime.sampling import Noise, Sampling, draw, warp
from poss_export.runtime.sessions.base import TargetOutput
from poss_export.runtime.tree import DraftTree

# (tree, the target's output for its nodes, absolute position of the token after the root) -> round
Verify = Callable[[DraftTree, TargetOutput, int], Round]


def verifier(sampling: Sampling) -> Verify:
    """Return the acceptance rule of one answer; it owns the answer's random numbers."""
    if sampling.greedy:
        return lambda tree, output, _: walk(tree, lambda path: int(output.next_tokens[path[-1]]))
    return Drawn(sampling)


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


def walk(tree: DraftTree, wanted: Callable[[list[int]], int]) -> Round:
    """Accept while the token that the target wants behind a path of nodes is a child of its last."""
    path = [0]
    while True:
        y = wanted(path)
        accepted = next((child for child in tree.children[path[-1]] if tree.tokens[child] == y), None)
        if accepted is None:
            return Round(tree, tuple(path), y)
        path.append(accepted)
