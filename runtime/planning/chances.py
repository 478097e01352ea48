"""The chance that a drafted node is accepted: what was calibrated, corrected by how this answer goes."""

import numpy as np
from numpy.typing import NDArray

from poss_export.acceptance import AcceptanceCurves
from poss_export.runtime.tree import DraftTree

_STEPS = 256  # of a probability, in the table that is looked up while drafting
_WORTH = 8.0  # nodes of an answer that the calibration counts as


class Calibration:
    """Acceptance curves as a table; one serves all answers of a bundle."""

    def __init__(self, curves: AcceptanceCurves) -> None:
        """Read the curves, by depth from 0 on, at evenly spaced probabilities."""
        scores = np.log(np.maximum(np.linspace(0, 1, _STEPS + 1), 1e-12))
        self._table: NDArray[np.float64] = np.array(
            [
                [curves.chance(depth, float(score)) for score in scores]
                for depth in range(len(curves.depths) + 1)
            ]
        )

    def of(self, tree: DraftTree) -> list[float]:
        """Return the chance of each node's whole path."""
        depths = np.minimum(tree.depths, len(self._table) - 1)
        steps = np.rint(_STEPS * np.exp(tree.scores)).astype(np.int64)
        chances: list[float] = self._table[depths, np.clip(steps, 0, _STEPS)].tolist()
        return chances


class DraftChances:
    """The chances of one answer's drafted trees.

    By depth it counts how many nodes were right of those whose parents were, and how many the calibration
    expected; their ratio, drawn towards 1 while there are few, corrects it. What is right is known of every
    node behind the accepted path, verified or not, so nothing is hidden by what a round leaves out.
    """

    def __init__(self, calibration: Calibration) -> None:
        """Begin with the calibration as it is."""
        self._calibration = calibration
        self._expected, self._right = list[float](), list[float]()  # by depth, from 1 on

    def of(self, tree: DraftTree) -> list[float]:
        """Return the chance of each node's whole path, at most its parent's."""
        raw, parents = self._calibration.of(tree), tree.parents.tolist()
        chances = [1.0]
        for node, depth in enumerate(tree.depths.tolist()[1:], start=1):
            parent = parents[node]
            share = min(raw[node] / max(raw[parent], 1e-9), 1.0) * self._correction(depth)
            chances.append(chances[parent] * min(share, 1.0))
        return chances

    def learn(self, tree: DraftTree, tokens: list[int]) -> None:
        """Note what came instead of, or as, the nodes of a drafted tree."""
        raw, node = self._calibration.of(tree), 0
        for depth, token in enumerate(tokens, start=1):
            children = tree.children[node]
            if not children:
                return
            while len(self._right) < depth:
                self._expected.append(_WORTH)
                self._right.append(_WORTH)
            self._expected[depth - 1] += min(sum(raw[c] for c in children) / max(raw[node], 1e-9), 1.0)
            node = next((c for c in children if tree.tokens[c] == token), 0)
            if node == 0:
                return
            self._right[depth - 1] += 1

    def _correction(self, depth: int) -> float:
        if depth > len(self._right):
            return 1.0
        return self._right[depth - 1] / self._expected[depth - 1]
