"""Alignment: what a specialist's last block gives the LM head, and what it feeds back as the next feature."""

import torch
from torch import Tensor, nn

from poss_export.drafter_config import Alignment, DrafterConfig
from poss_export.targets.decoder import MLP, RMSNorm


class JointAlignment(nn.Module):
    """One vector serves both (EAGLE, HASS, PosS)."""

    def __init__(self, config: DrafterConfig) -> None:
        """Allocate norm and MLP."""
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return (predict, feedback), each `[..., hidden]`, of the residual stream after attention."""
        out = h + self.mlp(self.norm(h))
        return out, out


class SplitAlignment(nn.Module):
    """[predict ; regress] = [h ; h] + MLP of twice the width: FSPAD's partial alignment (2408.15562).

    `predict` is free to serve the LM head; only `regress`, which is fed back, is aligned with the target.
    """

    def __init__(self, config: DrafterConfig) -> None:
        """Allocate norm and MLP."""
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, 2 * config.hidden_size)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return (predict, feedback), each `[..., hidden]`, of the residual stream after attention."""
        predict, regress = (torch.cat((h, h), dim=-1) + self.mlp(self.norm(h))).chunk(2, dim=-1)
        return predict, regress


ALIGNMENTS: dict[Alignment, type[JointAlignment] | type[SplitAlignment]] = {
    "joint": JointAlignment,
    "split": SplitAlignment,
}
