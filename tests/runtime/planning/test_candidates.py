import numpy as np

from poss_export.runtime.planning.candidates import Candidates
from poss_export.runtime.tree import DraftTree


def drawn() -> Candidates:
    """r ─┬─ 1 (.6) ─┬─ 3 (.5)
    │         └─ 4 (.05)
    └─ 2 (.3) ─── 5 (.2)"""
    made = Candidates(0)
    for parent, token, chance in ((0, 1, 0.6), (0, 2, 0.3), (1, 3, 0.5), (1, 4, 0.05), (2, 5, 0.2)):
        made.add(parent, token, chance)
    return made


def test_a_shared_beginning_is_there_once() -> None:
    made = drawn()
    made.graft(0, [1, 3, 7], [0.5, 1.0, 0.5])
    assert made.tokens == [0, 1, 2, 3, 4, 5, 7]
    assert made.parents[6] == 3
    assert made.chances[1:4:2] == [0.6, 0.5]  # the higher of two estimates
    assert made.chances[6] == 0.25


def test_a_drafted_tree_is_taken_as_it_is() -> None:
    tree = DraftTree.with_root(7, [8, 9, 8], [0, 0, 1], np.zeros(3))
    made = Candidates.drafted(tree, [1.0, 0.5, 0.2, 0.4])
    made.graft(0, [8, 8, 3], [1.0, 1.0, 1.0])
    made.graft(0, [7], [0.1])  # as the root's own token, which is no child
    assert made.tokens == [7, 8, 9, 8, 3, 7]
    assert made.parents == [0, 0, 0, 1, 3, 0]
    assert made.chances == [1.0, 1.0, 0.2, 1.0, 1.0, 0.1]


def test_a_child_is_never_likelier_than_its_parent() -> None:
    made = drawn()
    assert made.chances[made.add(2, 9, 0.9)] == 0.3
    made.graft(0, [2, 5], [0.8, 1.0])
    assert made.chances[2] == made.chances[5] == 0.8


def test_every_beginning_of_the_order_is_a_tree() -> None:
    made = drawn()
    made.graft(0, [2, 5, 8], [1.0, 1.0, 1.0])
    order = made.by_chance()
    assert [made.tokens[node] for node in order] == [0, 2, 5, 8, 1, 3, 4]
    for width in range(1, len(order) + 1):
        tree = made.tree(order[:width])
        assert len(tree) == width
        assert tree.tokens.tolist() == [made.tokens[node] for node in order[:width]]
    assert tree.parents.tolist() == [0, 0, 1, 2, 0, 4, 4]
    assert np.allclose(np.exp(tree.scores), [made.chances[node] for node in order])


def test_the_best_path_gains_most_not_most_at_first() -> None:
    made = drawn()
    assert made.best_path() == [0, 1, 3]
    made.graft(2, [5, 6, 7], [1.0, 1.0, 1.0])  # .3 + .3 + .3 + .3 against .6 + .5
    assert [made.tokens[node] for node in made.best_path()] == [0, 2, 5, 6, 7]


def test_the_root_alone_is_a_plain_step() -> None:
    made = Candidates(5)
    assert made.best_path() == made.by_chance() == [0]
    assert made.tree([0]).tokens.tolist() == [5]
