"""The losses of a drafter: the token distribution it predicts, and the feature it feeds back."""

import torch
from torch import Tensor
from torch.nn import functional as F

from poss_export.training.hardware import rounded


def token_loss(predict: Tensor, head: Tensor, top_ids: Tensor, weights: Tensor) -> Tensor:
    """Soft cross-entropy of the drafter's distribution against weighted tokens, mean over rows.

    predict: `[rows, hidden]`; head: `[draft_vocab, hidden]`; top_ids, weights: `[rows, top]`, the target's
    likeliest tokens and, float32, their probabilities, say. Where the target's mass lies outside the draft
    vocabulary, a row counts less: nothing that the drafter can propose is right there.
    """
    inputs = [x for x in (predict, head) if x.requires_grad]
    loss, gradients = _loss_and_gradients(predict, head, top_ids, weights)
    product = sum(((x * by_x).sum() for x, by_x in zip(inputs, gradients, strict=True)), start=loss * 0)
    return product + (loss - product.detach())


@torch.no_grad()
def _loss_and_gradients(
    predict: Tensor, head: Tensor, top_ids: Tensor, weights: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Return the loss, and its gradients by those of `predict` and `head` that want one.

    Logits and probabilities are the largest that training computes. autograd would keep them of every
    unrolled step, and write several more of their size.
    """
    count, smallest = len(predict), torch.finfo(torch.float32).tiny
    more = rounded(count) - count
    rows, top_ids, weights = (F.pad(x, (0, 0, 0, more)) for x in (predict, top_ids, weights))
    probabilities = (rows @ head.T).softmax(-1)
    chosen = probabilities.gather(1, top_ids).float().clamp(min=smallest)
    loss = -(weights * chosen.log()).sum() / count
    # By logits a row's loss changes as mass * (probabilities - shares of the weights).
    mass = weights.sum(-1, keepdim=True)
    shares = weights / mass.clamp(min=smallest)
    probabilities.scatter_add_(1, top_ids, -shares.to(probabilities.dtype))
    gradients = list[Tensor]()
    if predict.requires_grad:
        gradients.append(((probabilities @ head) * (mass / count))[:count])
    if head.requires_grad:
        gradients.append(probabilities.T @ (rows * (mass / count)))
    return loss, gradients


def feature_loss(feedback: Tensor, features: Tensor) -> Tensor:
    """SmoothL1 between the fed-back feature and the target's, `[rows, hidden]` each (EAGLE)."""
    return F.smooth_l1_loss(feedback.float(), features.float())
