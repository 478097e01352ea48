"""The losses against their definitions, written out."""

import pytest
import torch

from poss_export.training.losses import feature_loss, token_loss


def test_token_loss_is_soft_cross_entropy_over_the_words_given() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5, -1.0], [0.0, 0.0, 3.0, 0.0]])
    ids, chances = torch.tensor([[1, 0], [2, 3]]), torch.tensor([[0.7, 0.2], [0.9, 0.05]])
    q = logits.softmax(-1)
    rows = [0.7 * q[0, 1].log() + 0.2 * q[0, 0].log(), 0.9 * q[1, 2].log() + 0.05 * q[1, 3].log()]
    assert float(token_loss(logits, ids, chances)) == pytest.approx(-float(sum(rows)) / 2)
    # Restricted to the likeliest word (HASS takes ten), the others are left out, not renormalised.
    likeliest = token_loss(logits, ids[:, :1], chances[:, :1])
    assert float(likeliest) == pytest.approx(-float(0.7 * q[0, 1].log() + 0.9 * q[1, 2].log()) / 2)


def test_feature_loss_is_smooth_l1() -> None:
    wanted = torch.zeros(1, 4)
    assert float(feature_loss(torch.tensor([[0.5, -0.5, 2.0, 0.0]]), wanted)) == pytest.approx(
        (0.125 + 0.125 + 1.5) / 4
    )
