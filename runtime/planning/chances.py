"""The chance that a drafted node is accepted: what was calibrated, corrected by how this answer goes."""

from math import exp, log

from poss_export.acceptance import AcceptanceCurves
from poss_export.runtime.tree import DraftTree

_STEPS = 256  # of a probability, in the table that is looked up while drafting
_WORTH = 8.0  # nodes of an answer that the calibration counts as


class Calibration:
    """Acceptance curves as a table; one serves all answers of a bundle."""

    def __init__(self, curves: AcceptanceCurves) -> None:
        """Read the curves, by depth from 0 on, at evenly spaced probabilities."""
        scores = [log(max(step / _STEPS, 1e-12)) for step in range(_STEPS + 1)]
        depths = range(len(curves.depths) + 1)
        self._table = [[curves.chance(depth, score) for score in scores] for depth in depths]

    def of(self, tree: DraftTree) -> list[float]:
        """Return the chance of each node's whole path."""
        table, last = self._table, len(self._table) - 1
        return [
            table[min(depth, last)][min(round(_STEPS * exp(score)), _STEPS)]
            for depth, score in zip(tree.depths.tolist(), tree.scores.tolist(), strict=True)
        ]


class DraftChances:
    """The chances of one answer's drafted trees.

    By depth it counts how many nodes were right of those whose parents were, and how many the calibration
    expected; their ratio, drawn towards 1 while there are few, corrects it. What is right is known of every
    node behind the accepted path, verified or not, so nothing is hidden by what a round leaves out.
    """

    def __init__(self, calibration: Calibration) -> None:
        """Begin with the calibration as it is."""
        self._calibration = calibration
        self._expected, self._right = [1.0], [1.0]  # by depth; the root is right
        self._raw: list[float] = []  # of the tree that was asked for last

    def of(self, tree: DraftTree) -> list[float]:
        """Return the chance of each node's whole path, at most its parent's."""
        raw = self._raw = self._calibration.of(tree)
        while len(self._right) <= tree.depths.max():
            self._expected.append(_WORTH)
            self._right.append(_WORTH)
        corrections = [right / expected for right, expected in zip(self._right, self._expected, strict=True)]
        chances = [1.0]
        for node, (parent, depth) in enumerate(zip(tree.parents.tolist(), tree.depths.tolist(), strict=True)):
            if node > 0:
                share = raw[node] / max(raw[parent], 1e-9) * corrections[depth]
                chances.append(chances[parent] * min(share, 1.0))
        return chances

    def learn(self, tree: DraftTree, tokens: list[int]) -> None:
        """Note what came instead of, or as, the nodes of the tree that was asked for last."""
        raw, node = self._raw, 0
        for depth, token in enumerate(tokens, start=1):
            children = tree.children[node]
            if not children:
                return
            self._expected[depth] += min(sum(raw[child] for child in children) / max(raw[node], 1e-9), 1.0)
            node = next((child for child in children if tree.tokens[child] == token), 0)
            if node == 0:
                return
            self._right[depth] += 1
