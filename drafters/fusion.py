"""Fusion: one row from the embedding of token i+1 and feature i.

Every fusion but EAGLE-3's begins with z = W [e ; f] (+ b), embedding first, no activation. A row that is
drafted has a feature that the drafter fed back, in the place of what `project` makes of the target's.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from poss_export.drafter_config import DrafterConfig, Fusion
from poss_export.targets.decoder import Linear, RMSNorm


class LinearFusion(nn.Module):
    """z itself (EAGLE, HASS, PosS, ParallelSpec)."""

    def __init__(self, config: DrafterConfig) -> None:
        """Allocate the `[2 * hidden, hidden]` matrix."""
        super().__init__()
        self.fc = Linear(2 * config.hidden_size, config.hidden_size, config.fusion_bias)
        self.row_size = config.hidden_size

    def project(self, features: Tensor) -> Tensor:
        """Return the target's features `[..., hidden]`, which are like those that are fed back."""
        return features

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


class TapsFusion(nn.Module):
    """[e ; W N(taps)]: EAGLE-3's reading of inner layers (2503.01840), projected once, before all feedback.

    The first layer norms the halves of a row, and projects them together.
    """

    def __init__(self, config: DrafterConfig) -> None:
        """Allocate the `[taps * target_hidden, hidden]` matrix and its norms."""
        super().__init__()
        self.config = config
        self.fc = Linear(config.feature_size, config.hidden_size)
        self.row_size = 2 * config.hidden_size
        normed = {"none": 0, "joint": 1, "each": config.num_taps}[config.tap_norm]
        sizes = [config.feature_size // normed] * normed if normed else []
        self.norms = nn.ModuleList(RMSNorm(size, config.rms_norm_eps) for size in sizes)

    def project(self, features: Tensor) -> Tensor:
        """Map what the target gives for each row, `[..., taps * target_hidden]`, to `[..., hidden]`."""
        if len(self.norms):
            parts = zip(self.norms, features.chunk(len(self.norms), dim=-1), strict=True)
            features = torch.cat([norm(part) for norm, part in parts], dim=-1)
        projected: Tensor = self.fc(features)
        return projected

    def forward(self, embedding: Tensor, feature: Tensor) -> Tensor:
        """Map two `[..., hidden]` to one `[..., 2 * hidden]`."""
        return torch.cat((embedding, feature), dim=-1)

    def scale_embedding_rows(self, factor: float) -> None:
        """Do nothing: the first layer's norm takes the scale out of embeddings."""


AnyFusion = LinearFusion | TapsFusion

FUSIONS: dict[Fusion, type[LinearFusion] | type[TapsFusion]] = {
    "linear": LinearFusion,
    "gated": GatedFusion,
    "guided": GuidedFusion,
    "taps": TapsFusion,
}
