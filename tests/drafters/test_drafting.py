"""The draft round in PyTorch against the papers' definition, in both cache forms."""

from typing import Any

import pytest
import torch

from poss_export.config import TreeShape
from poss_export.drafters.drafting import TreeDrafting
from poss_export.exporters.drafter import DraftGraph
from tests.draft_rounds import ONE_BATCH, TWO_BATCHES, check_rounds
from tests.random_drafter import random_drafter, random_rows

CHOICES = [(1, None), *((s, p) for s in (2, 3) for p in (1, 2, 3))]


def runner(drafting: TreeDrafting, form: Any) -> Any:
    graph = DraftGraph(drafting, form, capacity=64)
    return lambda *inputs: [t.numpy() for t in graph(*(torch.from_numpy(x) for x in inputs))]


@pytest.mark.parametrize(("form", "plan"), [("shared", ONE_BATCH), ("static", TWO_BATCHES)])
@pytest.mark.parametrize(("specialists", "positions"), CHOICES)
def test_every_specialist_layout(specialists: int, positions: int | None, form: Any, plan: Any) -> None:
    drafter, tree = random_drafter(specialists, positions, bias=specialists == 2), TreeShape(5, 3, 12)
    embed, head = random_rows(1), random_rows(2)
    check_rounds(runner(TreeDrafting(drafter, tree, embed, head), form), drafter, tree, embed, head, plan)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 3), (3, 1, 3), (2, 3, 12), (7, 2, 9), (4, 5, 80)])
def test_every_tree_shape(shape: tuple[int, int, int]) -> None:
    drafter, tree, rows = random_drafter(3, 2), TreeShape(*shape), random_rows(3)
    drafting = TreeDrafting(drafter, tree, rows, rows)
    check_rounds(runner(drafting, "shared"), drafter, tree, rows, rows, ONE_BATCH[:4])
