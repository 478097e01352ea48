"""The losses against their definitions, written out."""

import pytest
import torch

from poss_export.training.losses import feature_loss, token_loss


@pytest.mark.parametrize("own_head", [False, True])
def test_token_loss_is_soft_cross_entropy_over_the_words_given(own_head: bool) -> None:
    torch.manual_seed(0)
    predict, head = torch.randn(5, 8, requires_grad=True), torch.randn(12, 8, requires_grad=own_head)
    ids = torch.stack([torch.randperm(12)[:3] for _ in range(5)])
    ids[0] = 0  # where the target's words lie outside the draft vocabulary, ids are 0 and weights too
    weights = torch.rand(5, 3) * (ids > 0)
    own = [predict, head][: 1 + own_head]

    wanted = -(weights * (predict @ head.T).log_softmax(-1).gather(1, ids)).sum(-1).mean()
    found = token_loss(predict, head, ids, weights)
    torch.testing.assert_close(found, wanted)
    by_wanted, by_found = (torch.autograd.grad(3 * loss, own) for loss in (wanted, found))
    for gradient, definition in zip(by_found, by_wanted, strict=True):
        torch.testing.assert_close(gradient, definition)


def test_token_loss_in_bfloat16_stays_near_float32() -> None:
    torch.manual_seed(0)
    predict, head = torch.randn(40, 64, requires_grad=True), torch.randn(512, 64) / 4
    ids, weights = torch.randint(512, (40, 8)), torch.rand(40, 8).softmax(-1)
    exact = token_loss(predict, head, ids, weights)
    (by_exact,) = torch.autograd.grad(exact, predict)
    with torch.autocast("cpu", torch.bfloat16):
        rough = token_loss(predict, head, ids, weights)
    (by_rough,) = torch.autograd.grad(rough, predict)
    assert rough.item() == pytest.approx(exact.item(), rel=0.01)
    assert float((by_rough - by_exact).norm() / by_exact.norm()) < 0.02


def test_words_of_no_chance_leave_the_token_loss_finite() -> None:
    predict, head = torch.tensor([[1000.0]], requires_grad=True), torch.tensor([[1.0], [-1.0]])
    loss = token_loss(predict, head, torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]]))
    (by_predict,) = torch.autograd.grad(loss, predict)
    assert loss.isfinite()
    assert float(by_predict) == pytest.approx(1.0)


def test_feature_loss_is_smooth_l1() -> None:
    wanted = torch.zeros(1, 4)
    assert float(feature_loss(torch.tensor([[0.5, -0.5, 2.0, 0.0]]), wanted)) == pytest.approx(
        (0.125 + 0.125 + 1.5) / 4
    )
