"""How much two results may differ that should be equal but for rounding."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poss_export.config import Precision
from poss_export.runtime.tree import DraftTree

# Of features and logits, relative to the largest value.
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 5e-2, "bf16": 5e-2}
# Scores are differences of logits, which may be far larger than their differences.
SCORE_TOLERANCE: dict[Precision, float] = {"fp32": 1e-3, "fp16": 5e-1, "bf16": 5e-1}


def difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest difference over the largest expected value; not a number where one is none.

    Where all expected values are zero, the largest difference itself: a certain drafter scores so.
    """
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return float(np.abs(found - expected).max() / (np.abs(expected).max() or 1.0))


def largest(differences: Iterable[float]) -> float:
    """Return the largest difference; not a number where one is none, which `max` may pass over."""
    return float(np.max([*differences]))


def tree_difference(found: DraftTree, expected: DraftTree) -> float:
    """Return the difference of scores, node by node; a node of one tree only counts as the other's last.

    So trees may differ in nodes between which rounding decides, and in no others.
    """
    ours, theirs = _scores(found), _scores(expected)
    last, their_last = min(ours.values()), min(theirs.values())
    paths = ours.keys() | theirs.keys()
    return difference(
        np.array([ours.get(path, last) for path in paths]),
        np.array([theirs.get(path, their_last) for path in paths]),
    )


def _scores(tree: DraftTree) -> dict[tuple[int, ...], float]:
    """Return the score of every node but the root, by the tokens that lead to it."""
    paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(tree.tokens[1:].tolist(), tree.parents[1:].tolist(), strict=True):
        paths.append((*paths[parent], token))
    return dict(zip(paths[1:], tree.scores[1:].tolist(), strict=True))
