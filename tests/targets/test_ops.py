"""The likeliest token, found by blocks."""

import pytest
import torch

from poss_export.targets.ops import likeliest


@pytest.mark.parametrize("vocab", [7, 96, 512, 1001])  # no block fits some of them
def test_the_likeliest_token_is_argmax(vocab: int) -> None:
    logits = torch.randn(2, 5, vocab, generator=torch.Generator().manual_seed(0))
    assert torch.equal(likeliest(logits), logits.argmax(-1))


@pytest.mark.parametrize("equal", [(3, 4), (3, 300), (255, 256, 511)])  # in one block, in several
def test_of_equal_logits_the_first_counts(equal: tuple[int, ...]) -> None:
    logits = torch.zeros(1, 1, 512)
    logits[..., list(equal)] = 1.0
    assert likeliest(logits).item() == equal[0]


def test_no_rows_have_no_tokens() -> None:
    assert likeliest(torch.zeros(1, 0, 96)).shape == (1, 0)
