"""Rotary position embedding tables, and the rotation itself."""

import math

import torch
from torch import Tensor

from poss_export.config import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Return the float32 `[head_dim / 2]` inverse frequencies after scaling."""
    frequencies = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    if rope.scaling == "linear":
        frequencies = frequencies / rope.factor
    elif rope.scaling == "llama3":
        # Llama 3.1: long wavelengths are divided by the factor, short ones kept, the band between blended.
        wavelengths = 2 * math.pi / frequencies
        turns = rope.original_max_positions / wavelengths
        blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        blend = blend.clamp(0, 1)
        frequencies = frequencies * (blend + (1 - blend) / rope.factor)
    return frequencies.float()


def rope_tables(rope: RopeConfig, head_dim: int, positions: int) -> tuple[Tensor, Tensor]:
    """Return float32 cosine and sine tables, each `[positions, head_dim / 2]`."""
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), inverse_frequencies(rope, head_dim))
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate halves of `x` `[..., head_dim]` by `cos`, `sin` that broadcast to `[..., head_dim / 2]`."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
