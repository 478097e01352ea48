import numpy as np
import pytest

from poss_export.runtime.tree import DraftTree

TREE = DraftTree.with_root(9, (5, 6, 7, 8), (0, 0, 1, 3), (-0.1, -0.5, -0.7, -0.9))


def test_depths_and_mask() -> None:
    assert TREE.depths.tolist() == [0, 1, 1, 2, 3]
    assert TREE.mask.astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]


def test_root_comes_first() -> None:
    assert TREE.tokens.tolist() == [9, 5, 6, 7, 8]
    assert TREE.children == [[1, 2], [3], [], [4], []]
    assert TREE.scores.dtype == np.float32


def test_every_beginning_is_a_tree() -> None:
    for nodes in range(1, len(TREE) + 2):
        part = TREE.first(nodes)
        assert len(part) == min(nodes, len(TREE))
        np.testing.assert_array_equal(part.mask, TREE.mask[:nodes, :nodes])
        np.testing.assert_array_equal(part.depths, TREE.depths[:nodes])


def test_root_alone() -> None:
    root = DraftTree.with_root(3)
    assert root.tokens.tolist() == [3]
    assert root.tokens.dtype == root.parents.dtype == np.int64
    assert root.mask.tolist() == [[True]]
    assert root.children == [[]]


def test_a_chain_has_no_branch() -> None:
    chain = DraftTree.chain([4, 4, 9])
    assert chain.is_chain
    assert DraftTree.with_root(3).is_chain
    assert not TREE.is_chain
    assert TREE.first(2).is_chain
    np.testing.assert_array_equal(chain.mask, np.tri(3, dtype=bool))
    assert chain.depths.tolist() == [0, 1, 2]


def test_child_before_its_parent_is_refused() -> None:
    with pytest.raises(AssertionError):
        DraftTree.with_root(9, (5, 6), (2, 0), (0, 0))
