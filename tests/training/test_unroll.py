"""The unroll equals drafting step by step, recomputed from the definition without streams or shifts."""

from functools import cache

import pytest
import torch
from torch import Tensor

from poss_export.config import DrafterConfig
from poss_export.drafters.model import Drafter
from poss_export.targets.rope import rope_tables, rotate
from poss_export.training.unroll import Batch, unroll

HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 32, 4, 2, 16


def random_drafter(specialists: int, positions: int | None) -> Drafter:
    config = DrafterConfig(
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        rms_norm_eps=1e-5,
        vocab_size=50,
        draft_vocab_size=20,
        num_specialists=specialists,
        positions_per_specialist=positions,
    )
    drafter = Drafter(config)
    torch.manual_seed(specialists)
    for weight in drafter.parameters():
        torch.nn.init.normal_(weight, std=0.12)
    return drafter


class PlainDrafting:
    """Feedback of row c when the last `step` of its features were drafted, one row at a time."""

    def __init__(self, drafter: Drafter, embeddings: Tensor, features: Tensor) -> None:
        self.drafter, self.embeddings, self.features = drafter, embeddings, features
        self.cos, self.sin = rope_tables(drafter.config.rope, HEAD_DIM, len(features))
        self.feedback = cache(self._feedback)

    def _feedback(self, row: int, step: int) -> Tensor:
        specialist = self.drafter.specialist(step + 1)
        x = torch.stack(
            [
                self.drafter.fusion(self.embeddings[c], self._feature(c, c - row + step))
                for c in range(row + 1)
            ]
        )
        key, value = specialist.key_value(x)
        key = rotate(key.view(-1, KV_HEADS, HEAD_DIM), self.cos[: row + 1, None], self.sin[: row + 1, None])
        query = specialist.q(x[row]).view(HEADS, HEAD_DIM)
        query = rotate(query, self.cos[row], self.sin[row])
        mixed = []
        for head in range(HEADS):
            group = head // (HEADS // KV_HEADS)
            weights = (key[:, group] @ query[head] / HEAD_DIM**0.5).softmax(0)
            mixed.append(weights @ value.view(-1, KV_HEADS, HEAD_DIM)[:, group])
        _, feedback = specialist.finish(x[row], torch.cat(mixed))
        return feedback

    def _feature(self, column: int, drafted: int) -> Tensor:
        """The feature `drafted` steps deep at a column: the target's, or the feedback of the row before."""
        return self.features[column] if drafted <= 0 else self.feedback(column - 1, drafted - 1)


@pytest.mark.parametrize(("specialists", "positions"), [(1, None), (2, 1), (2, 2), (3, 1)])
def test_unroll_equals_drafting_row_by_row(specialists: int, positions: int | None) -> None:
    drafter, steps, seq = random_drafter(specialists, positions), 4, 9
    embeddings, features = torch.randn(2, 1, seq, HIDDEN)
    rows = torch.ones(1, seq, dtype=torch.bool)
    plain = PlainDrafting(drafter, embeddings[0], features[0])
    with torch.no_grad():
        for step, (predict, feedback) in enumerate(unroll(drafter, Batch(embeddings, features, rows), steps)):
            assert predict is feedback  # joint alignment
            for row in range(step, seq):  # a row above `step` would need drafts from before the text
                torch.testing.assert_close(feedback[row], plain.feedback(row, step), atol=2e-5, rtol=1e-4)


def test_padding_and_neighbours_change_nothing() -> None:
    drafter = random_drafter(2, 1)
    embeddings, features = torch.randn(2, 2, 8, HIDDEN)
    rows = torch.ones(2, 8, dtype=torch.bool)
    rows[:, 5:] = False
    with torch.no_grad():
        both = [f.view(2, 5, -1)[0] for _, f in unroll(drafter, Batch(embeddings, features, rows), 3)]
        alone = Batch(embeddings[:1, :5], features[:1, :5], rows[:1, :5])
        for together, (_, single) in zip(both, unroll(drafter, alone, 3), strict=True):
            torch.testing.assert_close(together, single)


def test_unscored_rows_hand_on_the_feature_they_read() -> None:
    """A row behind the prompt has no drafted feature to its left: it goes on with the target's."""
    drafter = random_drafter(1, None)
    embeddings, features = torch.randn(2, 1, 7, HIDDEN)
    rows = torch.zeros(1, 7, dtype=torch.bool)
    rows[0, 4] = True
    with torch.no_grad():
        first, second = (f for _, f in unroll(drafter, Batch(embeddings, features, rows), 2))
    torch.testing.assert_close(first, second)


def test_gradients_reach_every_used_weight_but_not_the_features() -> None:
    drafter = random_drafter(2, 1)
    embeddings, features = torch.randn(2, 1, 6, HIDDEN)
    features.requires_grad_()
    rows = torch.ones(1, 6, dtype=torch.bool)
    torch.stack([f.sum() for _, f in unroll(drafter, Batch(embeddings, features, rows), 2)]).sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in drafter.parameters())
