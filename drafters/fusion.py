"""Fusion: one vector per row from the embedding of token i+1 and feature i.

Every fusion begins with z = W [e ; f] (+ b), embedding first, no activation.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from poss_export.config import DrafterConfig, Fusion
from poss_export.targets.decoder import Linear, RMSNorm


class LinearFusion(nn.Module):
    """z itself (EAGLE, HASS, PosS, ParallelSpec)."""

    def __init__(self, config: DrafterConfig) -> None:
        """Allocate the `[2 * hidden, hidden]` matrix."""
        super().__init__()
        self.fc = Linear(2 * config.hidden_size, config.hidden_size, config.fusion_bias)

    def forward(self, embedding: Tensor, feature: Tensor) -> Tensor:
        """Map two `[..., hidden]` to one `[..., hidden]`."""
        fused: Tensor = self.fc(torch.cat((embedding, feature), dim=-1))
        return fused

    @torch.no_grad()
    def scale_embedding_rows(self, factor: float) -> None:
        """Read embeddings as if they had been multiplied by `factor`."""
        self.fc.weight[: self.fc.weight.shape[1]].mul_(factor)


class GatedFusion(LinearFusion):
    """z + W_d (SiLU(W_g e) * (W_u RMSNorm(z))): FSPAD's sampling of features (2408.15562).

    The gate sees the raw embedding, and decides in the wide space what of the feature is read.
    """

    def __init__(self, config: DrafterConfig) -> None:
        """Allocate the matrices of z and of the wide space."""
        super().__init__(config)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gate = Linear(config.hidden_size, config.intermediate_size)
        self.up = Linear(config.hidden_size, config.intermediate_size)
        self.down = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, embedding: Tensor, feature: Tensor) -> Tensor:
        """Map two `[..., hidden]` to one `[..., hidden]`."""
        z = super().forward(embedding, feature)
        fused: Tensor = z + self.down(F.silu(self.gate(embedding)) * self.up(self.norm(z)))
        return fused

    @torch.no_grad()
    def scale_embedding_rows(self, factor: float) -> None:
        """Read embeddings as if they had been multiplied by `factor`."""
        super().scale_embedding_rows(factor)
        self.gate.weight.mul_(factor)


class GuidedFusion(LinearFusion):
    """z + W_d SiLU(W_u [N2(N1(z)) ; N2(e)]): GRIFFIN's token-guided fusion (2502.11018)."""

    def __init__(self, config: DrafterConfig) -> None:
        """Allocate the matrices of z and of the wide space."""
        super().__init__(config)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)  # N1
        self.input_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)  # N2, used twice
        self.up = Linear(2 * config.hidden_size, config.intermediate_size)
        self.down = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, embedding: Tensor, feature: Tensor) -> Tensor:
        """Map two `[..., hidden]` to one `[..., hidden]`."""
        z = super().forward(embedding, feature)
        wide = torch.cat((self.input_norm(self.norm(z)), self.input_norm(embedding)), dim=-1)
        fused: Tensor = z + self.down(F.silu(self.up(wide)))
        return fused  # N2 takes the scale out of e, so that only z has rows to scale


FUSIONS: dict[Fusion, type[LinearFusion]] = {
    "linear": LinearFusion,
    "gated": GatedFusion,
    "guided": GuidedFusion,
}
