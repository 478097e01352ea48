"""EAGLE-3's round, with every flag, against a plain restatement; PosS and P-EAGLE on it."""

from typing import Any

import pytest
import torch

from poss_export.config import TreeShape
from poss_export.drafters.graph import DraftGraph
from poss_export.drafters.make_round import make_round
from poss_export.errors import CheckpointError
from tests.fixtures.draft_rounds import ONE_BATCH, TWO_BATCHES, check_rounds
from tests.fixtures.random_drafter import random_drafter, random_rows
from tests.fixtures.reference_eagle3 import restated

TREE = TreeShape(5, 3, 12)
TAPS: dict[str, Any] = {"fusion": "taps", "taps": (0, 3, 4)}
PARALLEL: dict[str, Any] = {"drafting": "parallel", "num_masks": 4, "shared_mask": True}
EVERYTHING: dict[str, Any] = {
    "tap_norm": "each",
    "norm_before_residual": True,
    "feed_back_normed": True,
    "qk_norm": True,
    "own_head": True,
    "own_embeddings": True,
    "target_hidden_size": 48,
}


def check(specialists: int, positions: int | None, form: Any, plan: Any, **choices: Any) -> None:
    drafter = random_drafter(specialists, positions, **TAPS, **choices)
    embed, head = random_rows(1), random_rows(2)
    graph = DraftGraph(make_round(drafter, TREE, embed, head), form, capacity=64)
    if drafter.embeddings is not None:
        embed = drafter.embeddings[drafter.draft_ids]
    head = head if drafter.head is None else drafter.head.detach()

    def run(*inputs: Any) -> Any:
        return [t.numpy() for t in graph(*(torch.from_numpy(x) for x in inputs))]

    check_rounds(run, restated(drafter), TREE, embed, head, plan, table=drafter.embeddings)


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"tap_norm": "joint"},
        {"tap_norm": "each", "feed_back_normed": True},
        {"norm_before_residual": True},
        {"qk_norm": True, "qkv_bias": True},
        {"own_head": True},
        {"own_embeddings": True},
        {"num_layers": 3},
        {**EVERYTHING, "num_layers": 2},
        {**PARALLEL, "num_layers": 2},
        {**PARALLEL, **EVERYTHING},
    ],
)
def test_every_flag(choices: dict[str, Any]) -> None:
    check(1, None, "static", TWO_BATCHES, **choices)


@pytest.mark.parametrize("choices", [{}, EVERYTHING, {"num_layers": 2}, {**PARALLEL, "num_layers": 3}])
def test_shared_caches(choices: dict[str, Any]) -> None:
    check(1, None, "shared", ONE_BATCH, **choices)


@pytest.mark.parametrize(("specialists", "positions"), [(2, 1), (3, 1), (2, 3), (3, 2)])
def test_specialists_share_a_cache(specialists: int, positions: int) -> None:
    check(specialists, positions, "shared", ONE_BATCH, norm_before_residual=specialists == 3)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"taps": (3, 1)}, r"taps are \[3, 1\]; expected ascending layers"),
        ({"taps": (2, 2)}, r"taps are \[2, 2\]"),
        ({"alignment": "split"}, "fusion 'taps' needs alignment 'joint'"),
        ({"target_hidden_size": 48}, "hidden_size is 32, its target's 48: it needs own_head"),
        ({"fusion": "linear"}, "fusion 'linear' has taps; only fusion 'taps'"),
    ],
)
def test_what_contradicts(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        random_drafter(**{**TAPS, **choices})


def test_specialists_of_several_layers() -> None:
    with pytest.raises(CheckpointError, match="has 2 specialists; only drafting 'tree' with 1 layer"):
        random_drafter(2, 2, **TAPS, num_layers=2)
