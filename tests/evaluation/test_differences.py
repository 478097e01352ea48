"""Differences are relative, and trees may differ in what nearly ties."""

import numpy as np
import pytest

from poss_export.evaluation.differences import difference, largest, tree_difference
from poss_export.runtime.tree import DraftTree


def test_differences_are_relative_to_the_largest_value() -> None:
    assert difference(np.array([1.0, 98.0]), np.array([2.0, 100.0])) == 0.02
    assert np.isnan(difference(np.array([np.nan]), np.array([1.0])))


def test_what_is_no_number_is_the_largest() -> None:
    assert largest([1e-6, 0.5]) == 0.5
    assert np.isnan(largest([1e-6, float("nan")]))
    assert np.isnan(largest(iter([float("nan"), 1e-6])))


def test_zeros_differ_by_what_is_not_zero() -> None:
    assert difference(np.array([0, 0.5]), np.zeros(2)) == 0.5
    certain = DraftTree.chain([7, 8, 9])  # every score is 0: the drafter has no doubt
    assert tree_difference(certain, certain) == 0


def test_trees_may_differ_in_what_nearly_ties() -> None:
    def tree(*nodes: tuple[int, int, float]) -> DraftTree:
        tokens, parents, scores = (np.array(column) for column in zip(*nodes, strict=True))
        return DraftTree.with_root(0, tokens, parents, scores)

    whole = tree((4, 0, -1.0), (5, 0, -2.0), (6, 1, -4.0))
    assert tree_difference(whole, whole) == 0
    assert tree_difference(tree((4, 0, -1.0), (5, 0, -2.0), (7, 2, -4.0)), whole) == 0
    assert tree_difference(tree((4, 0, -1.0), (9, 0, -2.0), (6, 1, -4.0)), whole) == pytest.approx(0.5)
    assert tree_difference(tree((4, 0, -1.2), (5, 0, -2.0), (6, 1, -4.0)), whole) == pytest.approx(0.05)
