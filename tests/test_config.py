import pytest

from poss_export.config import TreeShape
from poss_export.errors import InputError


@pytest.mark.parametrize(
    ("depth", "top_k", "nodes"), [(4, 4, 23), (4, 1, 4), (1, 3, 3), (2, 2, 6), (5, 4, 23)]
)
def test_a_shape_without_nodes_has_all_it_can_have(depth: int, top_k: int, nodes: int) -> None:
    assert TreeShape.of(depth, top_k) == TreeShape(depth, top_k, nodes)


def test_a_shape_keeps_the_nodes_that_are_asked_for() -> None:
    assert TreeShape.of(4, 4, 5).nodes == 5
    with pytest.raises(InputError, match="tree depth is 0"):
        TreeShape.of(0, 4)
    with pytest.raises(InputError, match="top-k 1 give only 4 candidates"):
        TreeShape.of(4, 1, 5)
