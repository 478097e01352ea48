"""The unrolled drafter: training sees the inputs that drafting will see (HASS 2408.15766, PosS 2506.03566).

Stream 0 holds the target's features, stream m features drafted m steps deep. Step j (0-based, draft
position j + 1) queries with stream j; row c attends

    column     0 ... c-j   c-j+1   c-j+2  ...  c
    of stream      0         1       2    ...  j

with keys and values of all streams projected by the specialist of position j + 1. Everything else is
masked with -inf (multiplying scores by 0 would leave masked columns in the softmax).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from poss_export.drafters.model import Drafter
from poss_export.targets.rope import rope_tables, rotate


@dataclass(frozen=True)
class Batch:
    """Right-padded rows of dialogues; row c pairs feature c with token c + 1.

    embeddings, features: `[batch, seq, hidden]`; rows: bool `[batch, seq]`, True where row c is scored
    (it predicts token c + 2, an answer token).
    """

    embeddings: Tensor
    features: Tensor
    rows: Tensor


def unroll(drafter: Drafter, batch: Batch, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (predict, feedback) of each step, each `[scored rows, hidden]`, rows in row-major order.

    The feedback of row c, detached, is the next stream's feature at column c + 1. Where row c is not
    scored, the next stream keeps the previous stream's feature: those columns have fewer drafts behind them.
    """
    config, (size, seq, _) = drafter.config, batch.features.shape
    cos, sin = (t.to(batch.features.device) for t in rope_tables(config.rope, config.head_dim, seq))
    streams = [batch.features]
    fused = [drafter.fusion(batch.embeddings, batch.features)]
    for step in range(steps):
        specialist = drafter.specialist(step + 1)
        x = fused[step]
        query = _heads(specialist.q(x), config.num_kv_heads, config.head_dim, cos, sin)
        pairs = [specialist.key_value(stream) for stream in fused]
        keys = [_heads(key, config.num_kv_heads, config.head_dim, cos, sin) for key, _ in pairs]
        values = [_heads(value, config.num_kv_heads, config.head_dim) for _, value in pairs]
        mixed = _attend(query, keys, values).permute(0, 3, 1, 2, 4).reshape(size, seq, -1)
        predict, feedback = specialist.finish(x[batch.rows], mixed[batch.rows])
        yield predict, feedback
        if step + 1 < steps:
            drafted = streams[step].clone()
            drafted[batch.rows] = feedback.detach().to(drafted.dtype)
            written = F.pad(batch.rows, (1, 0))[:, :seq]
            shifted = F.pad(drafted, (0, 0, 1, 0))[:, :seq]
            streams.append(torch.where(written[..., None], shifted, streams[step]))
            fused.append(drafter.fusion(batch.embeddings, streams[-1]))


def _heads(
    x: Tensor, kv_heads: int, head_dim: int, cos: Tensor | None = None, sin: Tensor | None = None
) -> Tensor:
    """Return `[batch, kv_heads, group, seq, head_dim]`, rotated where tables are given."""
    x = x.unflatten(-1, (kv_heads, -1, head_dim)).permute(0, 2, 3, 1, 4)
    return x if cos is None or sin is None else rotate(x, cos, sin).to(x.dtype)


def _attend(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """Mix values of streams 0..j as the module's picture says; `[batch, kv_heads, group, seq, head_dim]`."""
    step, seq = len(keys) - 1, query.shape[-2]
    query = query * query.shape[-1] ** -0.5
    columns = torch.arange(seq, device=query.device)
    hidden = columns > columns[:, None] - step
    scores = [(query @ keys[0].transpose(-1, -2)).float().masked_fill(hidden, -torch.inf)]
    late = [_shift(value, step - m) for m, value in enumerate(values) if m > 0]
    for m in range(1, step + 1):
        score = (query * _shift(keys[m], step - m)).sum(-1, keepdim=True).float()
        scores.append(score.masked_fill((columns < step - m)[:, None], -torch.inf))
    weights = torch.cat(scores, dim=-1).softmax(-1).to(query.dtype)
    mixed = weights[..., :seq] @ values[0]
    for m, value in enumerate(late):
        mixed = mixed + weights[..., seq + m, None] * value
    return mixed


def _shift(x: Tensor, places: int) -> Tensor:
    """Return rows moved `places` to the right along seq: row c holds what column c - places held."""
    return x if places == 0 else F.pad(x, (0, 0, places, 0))[..., : x.shape[-2], :]
