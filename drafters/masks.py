"""Mask rows: what stands for tokens that are not drafted yet, so that one pass drafts them all.

ParallelSpec (2410.05589) trains embeddings of [MASK] tokens and drafts a group of tokens in one pass. It
leaves open what feature a mask row reads; the choices here are ours (docs/decisions/0006).
"""

import torch
from torch import Tensor, nn

from poss_export.drafter_config import DrafterConfig
from poss_export.drafters.fusion import AnyFusion


class Masks(nn.Module):
    """Embeddings and feature of the mask rows; mask i (1-based) stands at draft position i + 1."""

    def __init__(self, config: DrafterConfig) -> None:
        """Allocate without initialising."""
        super().__init__()
        self.config = config
        count = 1 if config.shared_mask else config.num_masks
        self.embeddings = nn.Parameter(torch.empty(count, config.hidden_size))
        self.feature = None
        if config.mask_feature == "learned":
            self.feature = nn.Parameter(torch.empty(config.feature_size))

    def row(self, index: int, last_feature: Tensor, fusion: AnyFusion) -> Tensor:
        """Return the fused row of mask `index`, `[..., row_size]`.

        last_feature: `[..., feature_size]`, the target's, of the last row before the masks; only
        `mask_feature` "repeat_last" reads it.
        """
        embedding = self.embeddings[0 if self.config.shared_mask else index - 1]
        embedding = embedding.expand(*last_feature.shape[:-1], -1)
        if self.config.mask_feature == "none":
            return embedding
        feature = last_feature
        if self.config.mask_feature == "zeros":
            feature = torch.zeros_like(last_feature)
        elif self.feature is not None:
            feature = self.feature.expand_as(last_feature)
        fused: Tensor = fusion(embedding, fusion.project(feature))
        return fused

    @torch.no_grad()
    def keep_embeddings(self, factor: float) -> None:
        """Multiply what the fusion reads as embeddings, after its own rows were divided."""
        if self.config.mask_feature != "none":
            self.embeddings.mul_(factor)
