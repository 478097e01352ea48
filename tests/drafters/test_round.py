"""The draft round in PyTorch against the papers' definition, in both cache forms."""

from typing import Any

import pytest
import torch

from poss_export.config import TreeShape
from poss_export.drafters.graph import DraftGraph
from poss_export.drafters.make_round import make_round
from poss_export.drafters.model import Drafter
from poss_export.drafters.round import DraftRound
from poss_export.errors import InputError
from tests.fixtures.draft_rounds import ONE_BATCH, TWO_BATCHES, check_rounds
from tests.fixtures.random_drafter import random_drafter, random_rows

FORMS = pytest.mark.parametrize(("form", "plan"), [("shared", ONE_BATCH), ("static", TWO_BATCHES)])
TREE = TreeShape(5, 3, 12)
PARALLEL: dict[str, Any] = {"drafting": "parallel", "num_masks": 4}


def check(drafter: Drafter, tree: TreeShape, form: Any, plan: Any) -> None:
    embed, head = random_rows(1), random_rows(2)
    run = runner(make_round(drafter, tree, embed, head), form)
    check_rounds(run, drafter, tree, embed, head, plan)


def runner(draft_round: DraftRound, form: Any) -> Any:
    graph = DraftGraph(draft_round, form, capacity=64)
    return lambda *inputs: [t.numpy() for t in graph(*(torch.from_numpy(x) for x in inputs))]


@FORMS
@pytest.mark.parametrize(
    ("specialists", "positions"), [(1, None), *((s, p) for s in (2, 3) for p in (1, 2, 3))]
)
def test_every_specialist_layout(specialists: int, positions: int | None, form: Any, plan: Any) -> None:
    check(random_drafter(specialists, positions, fusion_bias=specialists == 2), TREE, form, plan)


@FORMS
@pytest.mark.parametrize(
    "choices",
    [
        {"fusion": "gated", "alignment": "split", "fusion_bias": True},  # FSPAD
        {"fusion": "guided", "alignment": "split", "fusion_bias": True},  # GRIFFIN
        {"alignment": "split"},
        {"qkv_bias": True},
    ],
)
@pytest.mark.parametrize(("specialists", "positions"), [(1, None), (3, 2)])
def test_every_part_in_a_tree(
    specialists: int, positions: int | None, choices: dict[str, Any], form: Any, plan: Any
) -> None:
    check(random_drafter(specialists, positions, **choices), TREE, form, plan)


@FORMS
@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"num_masks": 7},  # more than the tree is deep
        {"shared_mask": True},
        {"mask_feature": "repeat_last"},
        {"mask_feature": "zeros"},
        {"mask_feature": "none", "num_layers": 2},
        {"num_layers": 3},
        {"num_layers": 2, "mask_feature": "repeat_last", "fusion": "gated", "fusion_bias": True},
        {"alignment": "split", "qkv_bias": True},
    ],
)
@pytest.mark.parametrize(("specialists", "positions"), [(1, None), (3, 2)])
def test_every_kind_of_mask(
    specialists: int, positions: int | None, choices: dict[str, Any], form: Any, plan: Any
) -> None:
    check(random_drafter(specialists, positions, **{**PARALLEL, **choices}), TREE, form, plan)


SHAPES = [(1, 1, 1), (1, 4, 3), (3, 1, 3), (2, 3, 12), (7, 2, 9), (4, 5, 80)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("choices", [{}, {"drafting": "parallel", "num_masks": 6}])
def test_every_tree_shape(choices: dict[str, Any], shape: tuple[int, int, int]) -> None:
    check(random_drafter(3, 2, **choices), TreeShape(*shape), "shared", ONE_BATCH[:4])


def test_a_tree_deeper_than_the_masks_is_refused() -> None:
    rows = random_rows(1)
    with pytest.raises(InputError, match="depth is 6, but the drafter drafts 5 positions"):
        make_round(random_drafter(**PARALLEL), TreeShape(6, 2, 4), rows, rows)
