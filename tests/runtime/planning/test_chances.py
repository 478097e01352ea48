"""Chances of drafted nodes: as calibrated, then as an answer goes."""

import math

import numpy as np
import pytest

from poss_export.acceptance import AcceptanceCurves
from poss_export.errors import BackendError
from poss_export.runtime.planning.chances import Calibration, DraftChances
from poss_export.runtime.tree import DraftTree

#   0 ─┬─ 1 (.8) ── 3 (.6) ── 4 (.5)
#      └─ 2 (.1)
TREE = DraftTree.with_root(9, [1, 2, 3, 4], [0, 0, 1, 3], np.log([0.8, 0.1, 0.6, 0.5]))


@pytest.fixture
def chances(fitted: AcceptanceCurves) -> DraftChances:
    return DraftChances(Calibration(fitted))


def test_a_new_answer_begins_with_the_calibration(chances: DraftChances, fitted: AcceptanceCurves) -> None:
    found = chances.of(TREE)
    expected = [
        fitted.chance(depth, score) for depth, score in zip(TREE.depths, TREE.scores.tolist(), strict=True)
    ]
    assert found == pytest.approx(expected, abs=0.01)
    assert found[0] == 1.0


def test_a_child_is_never_likelier_than_its_parent(chances: DraftChances) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        parents = [int(rng.integers(node)) for node in range(1, 12)]
        tree = DraftTree.with_root(0, range(1, 12), parents, np.log(rng.uniform(size=11)))
        found = chances.of(tree)
        assert all(found[node] <= found[parent] for node, parent in enumerate(tree.parents.tolist()))
        chances.learn(tree, [int(rng.integers(12)) for _ in range(3)])


def test_what_is_always_right_becomes_likelier_at_its_depth_alone(chances: DraftChances) -> None:
    before = chances.of(TREE)
    for _ in range(30):
        chances.of(TREE)
        chances.learn(TREE, [1, 77])  # the first token is right, the second another
    after = chances.of(TREE)
    assert after[1] > 1.4 * before[1]
    assert after[3] / after[1] < 0.5 * before[3] / before[1]


def test_of_what_came_behind_the_path_a_node_is_known_to_be_right_unverified(chances: DraftChances) -> None:
    """A bonus token that a pruned node would have proposed counts for its depth."""
    pruned = chances.of(TREE)
    for _ in range(30):
        chances.of(TREE)
        chances.learn(TREE, [1, 3])  # a round that verified the first level alone emitted both
    whole = chances.of(TREE)[3] / chances.of(TREE)[1]
    assert whole > pruned[3] / pruned[1]


def test_levels_without_end_are_counted_with_the_last(chances: DraftChances) -> None:
    deep = DraftTree.with_root(0, range(1, 100), range(99), np.linspace(-0.01, -5, 99))
    found = chances.of(deep)
    chances.learn(deep, list(range(1, 100)))
    assert len(found) == 100
    assert all(math.isfinite(chance) for chance in chances.of(deep))


def test_scores_that_are_no_numbers_are_told(chances: DraftChances) -> None:
    """A drafter overflows in half precision, say; planning by its scores would end in a traceback."""
    with pytest.raises(BackendError, match="scores are no numbers: it overflows in its precision"):
        chances.of(DraftTree.with_root(1, [2, 3], [0, 0], [-0.1, math.nan]))
