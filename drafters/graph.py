"""The draft graph: a drafter's whole round with its caches, as the contract states it."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.onnx.ops import rotary_embedding

from poss_export.config import CacheForm
from poss_export.drafters.round import DraftRound
from poss_export.targets.decoder import split_heads
from poss_export.targets.ops import tensor_scatter
from poss_export.targets.rope import rope_tables


class DraftGraph(nn.Module):
    """What the draft graph computes; it runs in PyTorch as it does in the graph."""

    def __init__(self, draft_round: DraftRound, cache_form: CacheForm, capacity: int) -> None:
        """Wrap a round in caches."""
        super().__init__()
        self.drafting, self.cache_form = draft_round, cache_form
        config = draft_round.config
        # Drafted rows stand behind the prefix, which may fill the caches; and ONNX Runtime rotates no more
        # rows at once than its tables have.
        tree = draft_round.tree
        positions = max(capacity + tree.depth, tree.depth * tree.top_k)
        tables = rope_tables(config.rope, config.head_dim, positions)
        self.cos, self.sin = (nn.Buffer(table.to(draft_round.head_rows.dtype)) for table in tables)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Map the contract's inputs to its outputs, each in the contract's order."""
        tokens, features, row_count, past_length, noise, *past = inputs
        caches = DraftCaches(self.cache_form, past, past_length, row_count, (self.cos, self.sin))
        embeddings = self.drafting.embed(tokens)
        return *self.drafting(embeddings, features, row_count, noise, caches), *caches.present


class DraftCaches:
    """The prefix in the graph's buffers, drafted rows beside it.

    Attention is written out in two parts, prefix and drafted rows, that meet in the softmax: joined keys and
    values would copy the prefix at every level. A mask hides what a sequence has not written; the `shared`
    form reads a buffer no further than the longest has, the `static` form all of it.
    """

    def __init__(
        self,
        form: CacheForm,
        past: Sequence[Tensor],
        past_length: Tensor,
        row_count: Tensor,
        tables: tuple[Tensor, Tensor],
    ) -> None:
        """Start a round; shapes as in the contract."""
        self.form, self.past, self.tables = form, past, tables
        self.past_length, self.length = past_length, past_length + row_count
        self.present = list[Tensor]()
        self.drafted = dict[int, tuple[Tensor, Tensor]]()
        self.used = capacity = past[0].shape[2]
        if form == "shared":
            self.used = cast(int, self.length.max().item())
            torch._check(self.used >= 0)  # or tracing would ask whether it counts from the end,
            torch._check(self.used <= capacity)  # and which of the two is smaller
        self.unwritten = self._prefix_bias(self.length[:, None], past[0].dtype)[:, None]  # [B, 1, 1, T]

    def append(self, first: int, key_value: Tensor) -> None:
        """Implement `RoundCaches.append`; padding rows are written too, and overwritten next round."""
        assert first == len(self.present) // 2, "caches are written in order, as the graph returns them"
        kv_heads, head_dim = self.past[0].shape[1], self.past[0].shape[3]
        key, value = split_heads(key_value, head_dim).chunk(2, dim=1)
        key = rotary_embedding(key, *self.tables, self.past_length[:, None] + torch.arange(key.shape[2]))
        halves = zip(key.split(kv_heads, dim=1), value.split(kv_heads, dim=1), strict=True)
        new = [half for pair in halves for half in pair]
        past = self.past[2 * first : 2 * first + len(new)]
        self.present += [
            tensor_scatter(old, rows, self.past_length) for old, rows in zip(past, new, strict=True)
        ]

    def attend(
        self,
        cache: int,
        query: Tensor,
        positions: Tensor,
        drafted: tuple[Tensor, Tensor, Tensor] | None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """Implement `RoundCaches.attend`."""
        # key, value: [B, G, T, D]
        key, value = (self._used_rows(half) for half in self.present[2 * cache : 2 * cache + 2])
        kv_heads, head_dim = key.shape[1], key.shape[3]
        rows = query.shape[1]
        group = query.shape[2] // (kv_heads * head_dim)
        q: Tensor = rotary_embedding(split_heads(query, head_dim), *self.tables, positions)
        q = q.unflatten(1, (kv_heads, -1)).flatten(2, 3) * head_dim**-0.5  # [B, G, group * rows, D]
        scores = q @ key.mT
        if seen is None:
            scores = scores + self.unwritten
        else:
            scores = scores + self._prefix_bias(seen, key.dtype).repeat(1, group, 1)[:, None]
        if drafted is None:
            mixed = scores.softmax(-1) @ value
        else:
            *new, bias = drafted
            drafted_key, drafted_value = self._drafted_rows(cache, *new)
            drafted_scores = q @ drafted_key.mT + bias.repeat(1, group, 1)[:, None]
            weights = torch.cat((drafted_scores, scores), dim=-1).softmax(-1)
            count = drafted_key.shape[2]
            mixed = weights[..., :count] @ drafted_value + weights[..., count:] @ value
        merged: Tensor = mixed.unflatten(2, (-1, rows)).permute(0, 3, 1, 2, 4).flatten(2)
        return merged

    def _used_rows(self, cache: Tensor) -> Tensor:
        return cache[:, :, : self.used] if self.form == "shared" else cache

    def _prefix_bias(self, seen: Tensor, dtype: torch.dtype) -> Tensor:
        """Return 0 for the first `seen` `[B, M]` rows of the prefix and -inf for the others, `[B, M, T]`."""
        hidden = torch.arange(self.used) >= seen[:, :, None]
        return torch.zeros((), dtype=dtype).masked_fill(hidden, float("-inf"))

    def _drafted_rows(self, cache: int, key_value: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return rotated keys and values `[B, G, n, D]` of all drafted rows, the latest of them new."""
        key, value = split_heads(key_value, self.past[0].shape[-1]).chunk(2, dim=1)
        key = rotary_embedding(key, *self.tables, positions)
        if cache in self.drafted:
            old_key, old_value = self.drafted[cache]
            key, value = torch.cat((old_key, key), dim=2), torch.cat((old_value, value), dim=2)
        self.drafted[cache] = key, value
        return key, value
