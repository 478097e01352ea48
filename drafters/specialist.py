"""A specialist: the drafter layer responsible for some draft positions; and the layers that EAGLE-3 has.

Which one drafts a position says `DrafterConfig.specialist`, for the runtime asks it too, without PyTorch.

Attention is split from its projections because the two users mix values differently: the draft
round attends over a cache and the tree, training over several streams of features.
"""

import torch
from torch import Tensor, nn

from poss_export.drafter_config import DrafterConfig
from poss_export.drafters.alignment import ALIGNMENTS
from poss_export.targets.decoder import MLP, Linear, RMSNorm


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


class TapsLayer(nn.Module):
    """A pre-norm decoder layer of EAGLE-3 (2503.01840).

    The `first` one that a row passes reads it whole, [embedding ; state], each half under a norm of its own;
    the state goes on. `final_norm`, which the last one has, belongs to the drafter: specialists share it.
    """

    def __init__(self, config: DrafterConfig, first: bool, final_norm: RMSNorm | None) -> None:
        """Allocate the layer's matrices."""
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        rows, kv_width = 2 * hidden if first else hidden, config.num_kv_heads * config.head_dim
        self.input_norm = RMSNorm(hidden, eps)
        self.hidden_norm = RMSNorm(hidden, eps) if first else None
        self.q_proj = Linear(rows, config.num_heads * config.head_dim, config.qkv_bias)
        self.kv_proj = Linear(rows, 2 * kv_width, config.qkv_bias)
        self.q_norm = RMSNorm(config.head_dim, eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, eps) if config.qk_norm else None
        self.output = Linear(config.num_heads * config.head_dim, hidden)
        self.norm = RMSNorm(hidden, eps)
        self.mlp = MLP(hidden, config.intermediate_size)
        self.final_norm = final_norm
        self.norm_before_residual = config.norm_before_residual
        self.feed_back_normed = config.feed_back_normed

    def q(self, x: Tensor) -> Tensor:
        """Return queries `[..., heads * head_dim]`, not rotated, of rows."""
        query: Tensor = self.q_proj(self._normed(x))
        return query if self.q_norm is None else _norm_heads(self.q_norm, query)

    def kv(self, x: Tensor) -> Tensor:
        """Return keys, then values, `[..., 2 * kv_heads * head_dim]`, not rotated, of rows."""
        return torch.cat(self.key_value(x), dim=-1) if self.k_norm else self.kv_proj(self._normed(x))

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return key and value, each `[..., kv_heads * head_dim]` and not rotated, of rows."""
        key, value = self.kv_proj(self._normed(x)).chunk(2, dim=-1)
        return (key if self.k_norm is None else _norm_heads(self.k_norm, key)), value

    def finish(self, x: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
        """Return (predict, feedback) of rows `x` and their mixed values `[..., heads * head_dim]`.

        Both are the state that goes on where another layer follows.
        """
        if self.hidden_norm is not None:
            x = x.chunk(2, dim=-1)[1]
            x = self.hidden_norm(x) if self.norm_before_residual else x
        x = x + self.output(mixed)
        x = x + self.mlp(self.norm(x))
        if self.final_norm is None:
            return x, x
        predict: Tensor = self.final_norm(x)
        return predict, predict if self.feed_back_normed else x

    def _normed(self, x: Tensor) -> Tensor:
        if self.hidden_norm is None:
            normed: Tensor = self.input_norm(x)
            return normed
        embedding, state = x.chunk(2, dim=-1)
        return torch.cat((self.input_norm(embedding), self.hidden_norm(state)), dim=-1)


AnyLayer = Specialist | TapsLayer


def _norm_heads(norm: RMSNorm, x: Tensor) -> Tensor:
    """Return `x` `[..., heads * head_dim]` with each head normed."""
    normed: Tensor = norm(x.unflatten(-1, (-1, norm.weight.numel()))).flatten(-2)
    return normed
