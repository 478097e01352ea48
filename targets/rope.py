"""Rotary position embedding tables, and the rotation itself."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from poss_export.config import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Return the float32 `[head_dim / 2]` inverse frequencies after scaling; 0 where nothing is rotated."""
    unrotated = 0 if rope.rotated is None else (head_dim - rope.rotated) // 2
    head_dim -= 2 * unrotated
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
    elif rope.scaling == "yarn":
        blend = _yarn_blend(rope, head_dim)
        frequencies = frequencies * (blend + (1 - blend) / rope.factor)
    elif rope.scaling == "longrope":
        frequencies = frequencies / torch.tensor(rope.divisors, dtype=torch.float64)
    return F.pad(frequencies.float(), (0, unrotated))


def _yarn_blend(rope: RopeConfig, head_dim: int) -> Tensor:
    """Return how much of each frequency YaRN keeps (arXiv 2309.00071, 3.2), float64 `[head_dim / 2]`."""

    def index(turns: float) -> float:
        # The frequency that turns so often over the original positions, counted from the fastest.
        positions = rope.original_max_positions / (2 * math.pi * turns)
        return head_dim * math.log(positions) / (2 * math.log(rope.theta))

    low, high = index(rope.beta_fast), index(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # as the reference does: a step, not a division by zero
    return 1 - ((torch.arange(head_dim // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)


def rope_tables(rope: RopeConfig, head_dim: int, positions: int) -> tuple[Tensor, Tensor]:
    """Return float32 cosine and sine tables, each `[positions, head_dim / 2]`."""
    frequencies = inverse_frequencies(rope, head_dim)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies)
    factors = torch.where(frequencies > 0, rope.attention_factor, 1.0)
    return angles.cos() * factors, angles.sin() * factors


def halves_first(rotated: int, head_dim: int) -> Tensor:
    """Return the order in which the first `rotated` values of a head lie as if all of them were rotated.

    Two values that are rotated together are half a head apart, as those are that stay as they are: int64
    `[head_dim]`, for each place the value that comes there.
    """
    values = torch.arange(head_dim).split([rotated, head_dim - rotated])
    return torch.cat(
        [half for halves in zip(*(part.chunk(2) for part in values), strict=True) for half in halves]
    )


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate halves of `x` `[..., head_dim]` by `cos`, `sin` that broadcast to `[..., head_dim / 2]`."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
