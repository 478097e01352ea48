"""The losses of a drafter: the token distribution it predicts, and the feature it feeds back."""

from torch import Tensor
from torch.nn import functional as F


def token_loss(logits: Tensor, top_ids: Tensor, top_probabilities: Tensor) -> Tensor:
    """Soft cross-entropy against the target's distribution, mean over rows.

    logits: `[rows, draft_vocab]`; top_ids, top_probabilities: `[rows, top]`. Where the target's mass lies
    outside the draft vocabulary, a row counts less: nothing that the drafter can propose is right there.
    """
    chosen = logits.float().log_softmax(-1).gather(1, top_ids)
    return -(top_probabilities.float() * chosen).sum(-1).mean()


def feature_loss(feedback: Tensor, features: Tensor) -> Tensor:
    """SmoothL1 between the fed-back feature and the target's, `[rows, hidden]` each (EAGLE)."""
    return F.smooth_l1_loss(feedback.float(), features.float())
