"""The unrolled drafter: training sees the inputs that drafting will see (HASS 2408.15766, PosS 2506.03566).

Stream 0 holds the target's features, stream m features drafted m steps deep, or in parallel drafting mask
row m (then this is ParallelSpec's group-wise mask, 2410.05589). Step j (0-based, draft position j + 1)
queries with stream j; row c attends

    column     0 ... c-j   c-j+1   c-j+2  ...  c
    of stream      0         1       2    ...  j

with keys and values of all streams projected by the specialist of position j + 1; with taps, where
specialists share a cache, those of stream m by the specialist of position m + 1 (the training-time test of
EAGLE-3, 2503.01840). Everything else is masked with -inf (multiplying scores by 0 would leave masked columns
in the softmax).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from poss_export.drafter_config import DrafterConfig
from poss_export.drafters.model import Drafter
from poss_export.drafters.specialist import AnyLayer
from poss_export.targets.rope import rope_tables, rotate
from poss_export.training.hardware import rounded


@dataclass(frozen=True)
class Batch:
    """Right-padded rows of dialogues; row c pairs feature c with token c + 1.

    embeddings: `[batch, seq, hidden]`; features: `[batch, seq, feature_size]`; rows: bool `[batch, seq]`,
    True where row c is scored (it predicts token c + 2, an answer token).
    """

    embeddings: Tensor
    features: Tensor
    rows: Tensor

    @cached_property
    def scored(self) -> Tensor:
        """Places of scored rows in `[batch * seq]`, int64: an index costs a device no wait, a mask does."""
        return self.rows.flatten().nonzero()[:, 0]

    def finish(self, layer: AnyLayer, x: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a layer makes of the scored rows `[scored rows, size]` of `[batch, seq, size]`."""
        count = len(self.scored)
        places = F.pad(self.scored, (0, rounded(count) - count))
        rows = [rows.flatten(0, 1).index_select(0, places) for rows in (x, mixed)]
        predict, feedback = layer.finish(*rows)
        return predict[:count], feedback[:count]


def unroll(drafter: Drafter, batch: Batch, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (predict, feedback) of each step, each `[scored rows, hidden]`, rows in row-major order.

    Level by level, the feedback of row c, detached, is the next stream's feature at column c + 1. Where row c
    is not scored, the next stream keeps the previous stream's feature: those columns have fewer drafts behind
    them. In parallel drafting the streams are mask rows and known beforehand.
    """
    heads = _Heads(drafter.config, batch.features.shape[1], batch.features.device)
    if drafter.config.reads_taps:
        yield from _unroll_taps(drafter, heads, batch, steps)
        return
    fused, feature = [drafter.fusion(batch.embeddings, batch.features)], batch.features
    if drafter.masks is not None:
        fused = _pass_shared_layers(drafter, heads, fused + _mask_rows(drafter, batch, steps))
    pairs: list[tuple[Tensor, Tensor]] = []  # of the specialist at hand, of all streams so far
    for step in range(steps):
        specialist = drafter.specialist(step + 1)
        if step > 0 and specialist is not drafter.specialist(step):
            pairs = []
        pairs += [heads.key_value(specialist, stream) for stream in fused[len(pairs) : step + 1]]
        mixed = heads.merge(_attend(heads.split(specialist.q(fused[step]), True), pairs))
        predict, feedback = batch.finish(specialist, fused[step], mixed)
        yield predict, feedback
        if drafter.masks is None and step + 1 < steps:
            feature = _drafted_stream(feature, feedback.detach(), batch)
            fused.append(drafter.fusion(batch.embeddings, feature))


def _unroll_taps(
    drafter: Drafter, heads: "_Heads", batch: Batch, steps: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Do what `unroll` does where every row passes all layers once; feedback keeps its gradient."""
    state = drafter.fusion.project(batch.features)
    fused = [drafter.fusion(batch.embeddings, state)]
    if drafter.masks is not None:
        fused += _mask_rows(drafter, batch, steps)
    pairs: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(drafter.config.num_layers)]
    for step in range(steps):
        x, specialist = fused[step], drafter.specialist(step + 1)
        for layer, known in zip((*drafter.shared_layers, specialist), pairs, strict=True):
            assert isinstance(layer, AnyLayer)
            known.append(heads.key_value(layer, x))
            mixed = heads.merge(_attend(heads.split(layer.q(x), True), known))
            if layer is not specialist:
                x, _ = layer.finish(x, mixed)
        predict, feedback = batch.finish(specialist, x, mixed)
        yield predict, feedback
        if drafter.masks is None and step + 1 < steps:
            state = _drafted_stream(state, feedback, batch)
            fused.append(drafter.fusion(batch.embeddings, state))


def _drafted_stream(feature: Tensor, feedback: Tensor, batch: Batch) -> Tensor:
    """Return the next stream's features `[batch, seq, hidden]` from this one's and its feedback."""
    flat = feature.flatten(0, 1).index_copy(0, batch.scored, feedback.to(feature.dtype))
    written = F.pad(batch.rows, (1, 0))[:, : feature.shape[1]]
    return torch.where(written[..., None], _shift(flat.view_as(feature), 1), feature)


def _mask_rows(drafter: Drafter, batch: Batch, steps: int) -> list[Tensor]:
    """Return fused mask rows 1 .. steps - 1: stream m at column c has its last real row at c - m."""
    assert drafter.masks is not None
    return [drafter.masks.row(m, _shift(batch.features, m), drafter.fusion) for m in range(1, steps)]


def _pass_shared_layers(drafter: Drafter, heads: "_Heads", streams: list[Tensor]) -> list[Tensor]:
    """Return the streams after the layers before the specialists; stream m sees the streams up to m."""
    for layer in drafter.shared_layers:
        assert isinstance(layer, AnyLayer)
        pairs = [heads.key_value(layer, stream) for stream in streams]
        mixed = [
            heads.merge(_attend(heads.split(layer.q(stream), True), pairs[: m + 1]))
            for m, stream in enumerate(streams)
        ]
        streams = [layer.finish(*both)[0] for both in zip(streams, mixed, strict=True)]
    return streams


class _Heads:
    """Splits rows `[batch, seq, ...]` into heads `[batch, kv_heads, group, seq, head_dim]` and back."""

    def __init__(self, config: DrafterConfig, seq: int, device: torch.device) -> None:
        self.kv_heads, self.head_dim = config.num_kv_heads, config.head_dim
        self.tables = [table.to(device) for table in rope_tables(config.rope, config.head_dim, seq)]

    def split(self, x: Tensor, rotated: bool) -> Tensor:
        x = x.unflatten(-1, (self.kv_heads, -1, self.head_dim)).permute(0, 2, 3, 1, 4)
        return rotate(x, *self.tables).to(x.dtype) if rotated else x

    def key_value(self, layer: AnyLayer, x: Tensor) -> tuple[Tensor, Tensor]:
        key, value = layer.key_value(x)
        return self.split(key, True), self.split(value, False)

    def merge(self, mixed: Tensor) -> Tensor:
        return mixed.permute(0, 3, 1, 2, 4).flatten(2)


def _attend(query: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Mix values of streams 0..j as the module's picture says; `[batch, kv_heads, group, seq, head_dim]`."""
    step, seq = len(pairs) - 1, query.shape[-2]
    query = query * query.shape[-1] ** -0.5
    columns = torch.arange(seq, device=query.device)
    hidden = columns > columns[:, None] - step
    scores = [(query @ pairs[0][0].transpose(-1, -2)).float().masked_fill(hidden, -torch.inf)]
    for m, (key, _) in enumerate(pairs[1:], start=1):
        score = (query * _shift(key, step - m)).sum(-1, keepdim=True).float()
        scores.append(score.masked_fill((columns < step - m)[:, None], -torch.inf))
    weights = torch.cat(scores, dim=-1).softmax(-1).to(query.dtype)
    mixed = weights[..., :seq] @ pairs[0][1]
    for m, (_, value) in enumerate(pairs[1:], start=1):
        mixed = mixed + weights[..., seq + m - 1, None] * _shift(value, step - m)
    return mixed


def _shift(x: Tensor, places: int) -> Tensor:
    """Return rows moved `places` to the right along seq: row c holds what column c - places held."""
    return x if places == 0 else F.pad(x, (0, 0, places, 0))[..., : x.shape[-2], :]
