"""Fusion: one vector per row from the embedding of token i+1 and feature i."""

import torch
from torch import Tensor, nn

from poss_export.targets.decoder import Linear


class LinearFusion(nn.Module):
    """`W [e ; f] (+ b)`, embedding first, no activation (EAGLE, HASS, PosS)."""

    def __init__(self, hidden: int, bias: bool) -> None:
        """Allocate the `[2 * hidden, hidden]` matrix."""
        super().__init__()
        self.fc = Linear(2 * hidden, hidden, bias)

    def forward(self, embedding: Tensor, feature: Tensor) -> Tensor:
        """Map two `[..., hidden]` to one `[..., hidden]`."""
        fused: Tensor = self.fc(torch.cat((embedding, feature), dim=-1))
        return fused
