"""The chance that a drafted node is accepted: what was calibrated, corrected by how this answer goes."""

from math import exp, log

import numpy as np

from poss_export.acceptance import AcceptanceCurves
from poss_export.errors import BackendError
from poss_export.runtime.tree import DraftTree

_STEPS = 256  # of a probability, in the table that is looked up while drafting
_WORTH = 2.0  # nodes of an answer that the calibration counts as: few, for it may not suit the text
_LEVELS = 64  # that are counted apart; deeper ones count with the last


class Calibration:
    """Acceptance curves as a table, by depth and by probability in `_STEPS`; one serves a whole bundle."""

    def __init__(self, curves: AcceptanceCurves) -> None:
        """Read the curves, by depth from 0 on, at evenly spaced probabilities."""
        scores = [log(max(step / _STEPS, 1e-12)) for step in range(_STEPS + 1)]
        depths = range(len(curves.depths) + 1)
        self.table = [[curves.chance(depth, score) for score in scores] for depth in depths]


class DraftChances:
    """The chances of one answer's drafted trees.

    By depth it counts how many nodes were right of those whose parents were, and how many the calibration
    expected; their ratio, drawn towards 1 while there are few, corrects it. What is right is known of every
    node behind the accepted path, verified or not, so nothing is hidden by what a round leaves out.
    """

    def __init__(self, calibration: Calibration) -> None:
        """Begin with the calibration as it is."""
        self._table = calibration.table
        self._expected, self._right = [_WORTH] * _LEVELS, [_WORTH] * _LEVELS  # by depth
        self._raw: list[float] = []  # calibrated chances of the tree that was asked for last

    def of(self, tree: DraftTree) -> list[float]:
        """Return the chance of each node's whole path, at most its parent's.

        Raises:
            BackendError: a score is no number.
        """
        if np.isnan(tree.scores).any():
            raise BackendError(
                "the drafter's scores are no numbers: it overflows in its precision; build it in fp32 or bf16"
            )
        corrections = [right / expected for right, expected in zip(self._right, self._expected, strict=True)]
        table, last = self._table, len(self._table) - 1
        depths, raw, chances = [0], [1.0], [1.0]
        for parent, score in zip(tree.parents.tolist()[1:], tree.scores.tolist()[1:], strict=True):
            depth = depths[parent] + 1
            calibrated = table[depth if depth < last else last][int(_STEPS * exp(score) + 0.5)]
            share = calibrated / max(raw[parent], 1e-9) * corrections[min(depth, _LEVELS - 1)]
            depths.append(depth)
            raw.append(calibrated)
            chances.append(chances[parent] * share if share < 1 else chances[parent])
        self._raw = raw
        return chances

    def learn(self, tree: DraftTree, tokens: list[int]) -> None:
        """Note what came instead of, or as, the nodes of the tree that was asked for last."""
        raw, node = self._raw, 0
        for number, token in enumerate(tokens, start=1):
            depth = min(number, _LEVELS - 1)
            children = tree.children[node]
            if not children:
                return
            self._expected[depth] += min(sum(raw[child] for child in children) / max(raw[node], 1e-9), 1.0)
            node = next((child for child in children if tree.tokens[child] == token), 0)
            if node == 0:
                return
            self._right[depth] += 1
