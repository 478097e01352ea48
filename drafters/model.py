"""One drafter built of parts: a fusion shared by all rows, and specialists by draft position."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from poss_export.config import DrafterConfig
from poss_export.drafters.fusion import FUSIONS
from poss_export.drafters.masks import Masks
from poss_export.drafters.specialist import Specialist


class Drafter(nn.Module):
    """Weights of a drafter; the embedding table and LM head are the target's and live elsewhere.

    `shared_layers` (parallel drafting only) come before the specialists, for all positions; `masks` is None
    where drafting goes level by level. `draft_ids`: int64 `[draft_vocab]`, ascending target ids that the
    drafter can propose.
    """

    draft_ids: Tensor

    def __init__(self, config: DrafterConfig) -> None:
        """Allocate without initialising."""
        super().__init__()
        self.config = config
        self.fusion = FUSIONS[config.fusion](config)
        shared = replace(config, alignment="joint")
        self.shared_layers = nn.ModuleList(Specialist(shared) for _ in range(config.num_layers - 1))
        self.specialists = nn.ModuleList(Specialist(config) for _ in range(config.num_specialists))
        self.masks = Masks(config) if config.drafting == "parallel" else None
        self.register_buffer("draft_ids", torch.arange(config.draft_vocab_size))

    def specialist(self, position: int) -> Specialist:
        """Return the specialist that drafts `position` (1-based)."""
        specialist = self.specialists[self.config.specialist(position)]
        assert isinstance(specialist, Specialist)
        return specialist

    def scale_embeddings(self, factor: float) -> None:
        """Read embeddings as if they had been multiplied by `factor`."""
        self.fusion.scale_embedding_rows(factor)
        if self.masks is not None:
            self.masks.keep_embeddings(1 / factor)
