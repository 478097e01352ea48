"""Alignment: what a specialist's last block gives the LM head, and what it feeds back as the next feature."""

from torch import Tensor, nn

from poss_export.targets.decoder import MLP, RMSNorm


class JointAlignment(nn.Module):
    """One vector serves both (EAGLE, HASS, PosS)."""

    def __init__(self, hidden: int, intermediate: int, eps: float) -> None:
        """Allocate norm and MLP."""
        super().__init__()
        self.norm = RMSNorm(hidden, eps)
        self.mlp = MLP(hidden, intermediate)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return (predict, feedback), each `[..., hidden]`, of the residual stream after attention."""
        out = h + self.mlp(self.norm(h))
        return out, out
