"""One drafter built of parts: a fusion shared by all rows, and specialists by draft position."""

import torch
from torch import Tensor, nn

from poss_export.config import DrafterConfig
from poss_export.drafters.fusion import LinearFusion
from poss_export.drafters.specialist import Specialist


class Drafter(nn.Module):
    """Weights of a drafter; the embedding table and LM head are the target's and live elsewhere.

    `draft_ids`: int64 `[draft_vocab]`, ascending target ids that the drafter can propose.
    """

    draft_ids: Tensor

    def __init__(self, config: DrafterConfig) -> None:
        """Allocate without initialising."""
        super().__init__()
        self.config = config
        self.fusion = LinearFusion(config.hidden_size, config.fusion_bias)
        self.specialists = nn.ModuleList(Specialist(config) for _ in range(config.num_specialists))
        self.register_buffer("draft_ids", torch.arange(config.draft_vocab_size))

    def specialist(self, position: int) -> Specialist:
        """Return the specialist that drafts `position` (1-based)."""
        specialist = self.specialists[self.config.specialist(position)]
        assert isinstance(specialist, Specialist)
        return specialist
