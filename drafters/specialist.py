"""A specialist: the drafter layer responsible for some draft positions.

Which one drafts a position says `DrafterConfig.specialist`, for the runtime asks it too, without PyTorch.

Attention is split from its projections because the two users mix values differently: the draft
round attends over a cache and the tree, training over several streams of features.
"""

from torch import Tensor, nn

from poss_export.config import DrafterConfig
from poss_export.drafters.alignment import ALIGNMENTS
from poss_export.targets.decoder import Linear


class Specialist(nn.Module):
    """One decoder layer without input norm."""

    def __init__(self, config: DrafterConfig) -> None:
        """Allocate the layer's matrices."""
        super().__init__()
        hidden, kv_width = config.hidden_size, config.num_kv_heads * config.head_dim
        self.q = Linear(hidden, config.num_heads * config.head_dim, config.qkv_bias)
        self.kv = Linear(hidden, 2 * kv_width, config.qkv_bias)
        self.output = Linear(config.num_heads * config.head_dim, hidden)
        self.alignment = ALIGNMENTS[config.alignment](config)

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return key and value, each `[..., kv_heads * head_dim]` and not rotated, of fused rows."""
        key, value = self.kv(x).chunk(2, dim=-1)
        return key, value

    def finish(self, x: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
        """Return (predict, feedback) of fused rows `x` and their mixed values `[..., heads * head_dim]`."""
        aligned: tuple[Tensor, Tensor] = self.alignment(x + self.output(mixed))
        return aligned
