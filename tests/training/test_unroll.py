"""The unroll equals drafting step by step, recomputed from the definition without streams or shifts."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from poss_export.config import TreeShape
from poss_export.drafter_config import DrafterConfig
from poss_export.drafters.graph import DraftGraph
from poss_export.drafters.make_round import make_round
from poss_export.drafters.model import Drafter
from poss_export.targets.rope import rope_tables, rotate
from poss_export.training.unroll import Batch, unroll
from tests.fixtures.reference_eagle3 import restated

HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 32, 4, 2, 16


def random_drafter(specialists: int, positions: int | None, **choices: Any) -> Drafter:
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
        **choices,
    )
    drafter = Drafter(config)
    torch.manual_seed(specialists)
    for weight in drafter.parameters():
        torch.nn.init.normal_(weight, std=0.12)
    return drafter


class PlainDrafting:
    """What row c returns when the last `step` of its features were drafted, one row at a time."""

    def __init__(self, drafter: Drafter, embeddings: Tensor, features: Tensor) -> None:
        self.drafter, self.embeddings, self.features = drafter, embeddings, features
        self.cos, self.sin = rope_tables(drafter.config.rope, HEAD_DIM, len(features))
        self.finish = cache(self._finish)

    def _finish(self, row: int, step: int) -> tuple[Tensor, Tensor]:
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
        return specialist.finish(x[row], torch.cat(mixed))

    def _feature(self, column: int, drafted: int) -> Tensor:
        """The feature `drafted` steps deep at a column: the target's, or the feedback of the row before."""
        return self.features[column] if drafted <= 0 else self.finish(column - 1, drafted - 1)[1]


@pytest.mark.parametrize("choices", [{}, {"fusion": "gated", "alignment": "split"}])
@pytest.mark.parametrize(("specialists", "positions"), [(1, None), (2, 1), (2, 2), (3, 1)])
def test_unroll_equals_drafting_row_by_row(
    specialists: int, positions: int | None, choices: dict[str, Any]
) -> None:
    drafter, steps, seq = random_drafter(specialists, positions, **choices), 4, 9
    embeddings, features = torch.randn(2, 1, seq, HIDDEN)
    rows = torch.ones(1, seq, dtype=torch.bool)
    plain = PlainDrafting(drafter, embeddings[0], features[0])
    with torch.no_grad():
        for step, (predict, feedback) in enumerate(unroll(drafter, Batch(embeddings, features, rows), steps)):
            assert torch.equal(predict, feedback) == (drafter.config.alignment == "joint")
            for row in range(step, seq):  # a row above `step` would need drafts from before the text
                expected = plain.finish(row, step)
                torch.testing.assert_close((predict[row], feedback[row]), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"shared_mask": True, "mask_feature": "repeat_last"},
        {"num_layers": 3, "mask_feature": "zeros"},
        {"num_layers": 2, "mask_feature": "none", "alignment": "split"},
    ],
)
@pytest.mark.parametrize(("specialists", "positions"), [(1, None), (2, 2)])
def test_mask_rows_are_trained_as_they_draft(
    specialists: int, positions: int | None, choices: dict[str, Any]
) -> None:
    """Every group of the unroll = the logits of a whole round behind its last real row."""
    steps, seq = 4, 7
    drafter = random_drafter(specialists, positions, drafting="parallel", num_masks=steps - 1, **choices)
    embeddings, features = torch.randn(2, 1, seq, HIDDEN)
    batch = Batch(embeddings, features, torch.ones(1, seq, dtype=torch.bool))
    head = torch.randn(20, HIDDEN)
    tree = TreeShape(depth=steps, top_k=1, nodes=steps)  # the likeliest of every position
    graph = DraftGraph(make_round(drafter, tree, head, head), "static", capacity=seq)
    shape = (1, KV_HEADS, seq, HEAD_DIM)
    caches = [torch.zeros(shape) for _ in range(2 * drafter.config.num_caches(steps))]
    with torch.no_grad():
        predicted = [predict for predict, _ in unroll(drafter, batch, steps)]
        for last in range(seq - steps):
            new = slice(0, last + 1)
            counts = torch.tensor([last + 1]), torch.tensor([0])
            noise = torch.zeros(1, steps, len(head))
            _, _, scores, *_ = graph(embeddings[:, new], features[:, new], *counts, noise, *caches)
            chain = [(head @ predicted[d][last + d]).log_softmax(0).max() for d in range(steps)]
            torch.testing.assert_close(scores[0], torch.stack(chain).cumsum(0), atol=2e-5, rtol=1e-4)


TAPS: dict[str, Any] = {"fusion": "taps", "taps": (1, 2)}


@pytest.mark.parametrize(
    ("specialists", "positions", "choices"),
    [
        (1, None, {}),
        (1, None, {"num_layers": 2, "feed_back_normed": True, "tap_norm": "each"}),
        (3, 1, {"norm_before_residual": True, "qk_norm": True}),
        (1, None, {"drafting": "parallel", "num_masks": 3, "num_layers": 2}),
    ],
)
def test_taps_are_trained_as_they_draft(
    specialists: int, positions: int | None, choices: dict[str, Any]
) -> None:
    """Every chain of the unroll = what the restatement makes of rows that were drafted one by one."""
    drafter, steps, seq = random_drafter(specialists, positions, **TAPS, **choices), 4, 8
    plain, embeddings, features = (
        restated(drafter),
        torch.randn(1, seq, HIDDEN),
        torch.randn(1, seq, 2 * HIDDEN),
    )
    rows = torch.ones(1, seq, dtype=torch.bool)
    with torch.no_grad():
        unrolled = list(unroll(drafter, Batch(embeddings, features, rows), steps))
        for last in range(seq - steps):
            path = list(plain.fusion(embeddings[0, : last + 1], features[0, : last + 1]))
            if drafter.masks is not None:
                predicted = plain.predictions(steps, embeddings[0, : last + 1], features[0, : last + 1])
                chain = [unrolled[step][0][last + step] for step in range(steps)]
                torch.testing.assert_close(chain, predicted, atol=2e-5, rtol=1e-4)
                continue
            for step in range(steps):
                expected = plain.run_layers(step + 1, torch.stack(path))
                found = tuple(x[last + step] for x in unrolled[step])
                torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
                path.append(plain.fuse_drafted(embeddings[0, last + step + 1], expected[1]))


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


def test_layers_meet_few_numbers_of_rows() -> None:
    """A CPU compiles code for every number of rows that it multiplies."""
    drafter, met = random_drafter(1, None), set[int]()
    output = drafter.get_submodule("specialists.0.output")
    output.register_forward_hook(lambda _, inputs, __: met.add(len(inputs[0])))
    for scored in (1, 5, 17):
        embeddings, features = torch.randn(2, 1, 20, HIDDEN)
        batch = Batch(embeddings, features, torch.arange(20)[None] < scored)
        for predict, _ in unroll(drafter, batch, 2):
            assert len(predict) == scored
    assert len(met) == 1
