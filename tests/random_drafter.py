"""Tiny drafters with seeded weights, large enough that every part of them shows in the scores."""

from typing import Any

import torch
from torch import Tensor

from poss_export.config import DrafterConfig, RopeConfig
from poss_export.drafters.model import Drafter

VOCAB, DRAFT_VOCAB, HIDDEN = 400, 24, 32


def random_drafter(specialists: int = 1, positions: int | None = None, **choices: Any) -> Drafter:
    """Return a drafter whose draft vocabulary is every fifth id from 3 on; choices: of `DrafterConfig`."""
    config = DrafterConfig(
        hidden_size=HIDDEN,
        intermediate_size=40,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        rms_norm_eps=1e-5,
        vocab_size=VOCAB,
        draft_vocab_size=DRAFT_VOCAB,
        rope=RopeConfig(theta=100.0),
        num_specialists=specialists,
        positions_per_specialist=positions,
        **choices,
    )
    drafter = Drafter(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(10 * specialists + (positions or 0))
    for weight in drafter.parameters():
        weight.normal_(0, 0.8 * weight.shape[0] ** -0.5, generator=generator)
    drafter.draft_ids.copy_(torch.arange(DRAFT_VOCAB) * 5 + 3)
    return drafter


def random_rows(seed: int) -> Tensor:
    """Return `[draft_vocab, hidden]` rows of an embedding table or a head."""
    return torch.randn(DRAFT_VOCAB, HIDDEN, generator=torch.Generator().manual_seed(seed)) * 0.3
