"""How attention mixes values: scores, their scale and cap, the mask, the softmax."""

import torch
from torch import Tensor
from torch.nn import functional as F

from poss_export.config import TargetConfig


def capped(x: Tensor, cap: float | None) -> Tensor:
    """Return `x` squeezed smoothly between -cap and cap; None: as it is."""
    return x if cap is None else (x / cap).tanh() * cap


def in_window(queries: Tensor, keys: Tensor, window: int) -> Tensor:
    """Return whether keys at positions `[batch, total]` are in the window of queries `[batch, seq]`.

    The result is `[batch, seq, total]`; what comes behind a query is in its window, too.
    """
    return keys[:, None] > queries[:, :, None] - window


def causal_masks(config: TargetConfig, seq: int, device: torch.device | None = None) -> list[Tensor | None]:
    """Return the masks of `mix` for whole sequences: without a window, and with one if any layer has it."""
    if (window := config.within(seq).window) is None:
        return [None]
    positions = torch.arange(seq, device=device)[None]
    seen = in_window(positions, positions, window) & (positions[:, None] <= positions[:, :, None])
    return [None, seen[:, None]]


def mix(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scale: float | None = None,
    cap: float | None = None,
) -> Tensor:
    """Return mixed values `[batch, heads, seq, size]`.

    Args:
        query: `[batch, heads, seq, size]`, rotated as the keys are.
        key: `[batch, kv_heads, total, size]`.
        value: as `key`.
        mask: `[batch, 1, seq, total]`, True where a row may see a column, or a bias; None: sequences from
            their beginning, each row sees those up to it.
        scale: of the scores; None is 1 / sqrt(size).
        cap: of the scores, before the mask.
    """
    if cap is None:
        grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(
            query, key, value, mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
        )
    return _mix_capped(query, key, value, mask, query.shape[-1] ** -0.5 if scale is None else scale, cap)


def _mix_capped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, cap: float
) -> Tensor:
    """Do the same written out, for no operator that all backends have caps scores."""
    if mask is None:
        seq = query.shape[2]
        mask = torch.ones(seq, seq, dtype=torch.bool, device=query.device).tril()[None, None]
    by_key = query.unflatten(1, (key.shape[1], -1)) * scale  # [batch, kv_heads, group, seq, size]
    scores = capped(by_key @ key[:, :, None].mT, cap)
    if mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask[:, :, None], torch.finfo(scores.dtype).min)
    else:
        scores = scores + mask[:, :, None]
    return (scores.softmax(-1) @ value[:, :, None]).flatten(1, 2)
