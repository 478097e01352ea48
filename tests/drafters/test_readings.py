"""A file that does not tell what is fed back: the reading that the drafter was made with drafts better."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from poss_export.drafters.checkpoint import load_drafter
from poss_export.drafters.readings import TOKENS, settle_feedback
from poss_export.targets.checkpoint import open_target
from poss_export.targets.decoder import causal_attend
from poss_export.training.unroll import Batch, unroll
from tests.fixtures.public_checkpoints import TINY, eagle3, speculators_eagle3, write

FC_NORM = {f"fc_norm.{i}.weight": (TINY.hidden,) for i in range(3)}


def test_who_leaves_it_open(tmp_path: Path) -> None:
    layouts = {
        "first": (eagle3(), False),
        "later": (eagle3(extra=dict(FC_NORM), fc_norm=True, norm_output=True), True),
        "speculators": (speculators_eagle3(extra=dict(FC_NORM), norm_output=True), False),
    }
    for name, (layout, unsettled) in layouts.items():
        checkpoint = load_drafter(str(write(tmp_path / name, layout.config, layout.random())))
        assert checkpoint.unsettled == unsettled, name


@pytest.mark.parametrize("made", [False, True])
def test_the_better_reading_is_kept(
    made: bool, tiny_folder: Callable[[str], Path], random_drafter: Callable[..., Any]
) -> None:
    """A few steps of training on the text itself, in one reading, are enough to tell."""
    target = open_target(str(tiny_folder("llama")))
    decoder = target.load_decoder()
    drafter = random_drafter(target.config, 1, fusion="taps", taps=(0, 1), own_head=True)
    drafter.requires_grad_(True).settle(replace(drafter.config, feed_back_normed=made))
    ids = drafter.draft_ids[torch.randint(60, (TOKENS,), generator=torch.Generator().manual_seed(1))]
    with torch.no_grad():
        attend = causal_attend(decoder.config, TOKENS, torch.float32)
        _, taps = decoder.hidden_and_read(ids[None], attend, (0, 1))
    rows = torch.ones(1, TOKENS - 2, dtype=torch.bool)
    batch = Batch(decoder.embed_tokens[ids[None, 1:-1]], taps[:, :-2], rows)
    wanted = torch.searchsorted(drafter.draft_ids, ids[2:])
    optimizer = torch.optim.Adam(drafter.parameters(), 3e-3)
    for _ in range(40):
        losses = [
            torch.nn.functional.cross_entropy(predict @ drafter.head.T, wanted)
            for predict, _ in unroll(drafter, batch, 3)
        ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
    drafter.requires_grad_(False).settle(replace(drafter.config, feed_back_normed=not made))
    assert settle_feedback(decoder, drafter, ids) > 0.1
    assert drafter.config.feed_back_normed == made
    assert drafter.specialists[0].feed_back_normed == made
