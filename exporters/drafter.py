"""The draft graph: a drafter's whole round with its caches, as the contract states it."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.onnx.ops import rotary_embedding

from poss_export.config import CacheForm, Precision, TreeShape
from poss_export.contract import FLOAT, draft_contract
from poss_export.drafters.drafting import TreeDrafting
from poss_export.drafters.model import Drafter
from poss_export.exporters.ops import tensor_scatter
from poss_export.exporters.tracing import export_graph
from poss_export.targets.decoder import split_heads
from poss_export.targets.rope import rope_tables


class DraftGraph(nn.Module):
    """What the draft graph computes; it runs in PyTorch as it does in the graph."""

    def __init__(self, drafting: TreeDrafting, cache_form: CacheForm, capacity: int) -> None:
        """Wrap a round in caches."""
        super().__init__()
        self.drafting, self.cache_form = drafting, cache_form
        config = drafting.config
        # Tree rows stand behind the prefix, which may fill the caches.
        tables = rope_tables(config.rope, config.head_dim, capacity + drafting.tree.depth)
        self.cos, self.sin = (nn.Buffer(table.to(drafting.key_value.dtype)) for table in tables)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Map the contract's inputs to its outputs, each in the contract's order."""
        embeddings, features, row_count, past_length, *past = inputs
        caches = DraftCaches(self.cache_form, past, past_length, row_count, (self.cos, self.sin))
        return *self.drafting(embeddings, features, row_count, caches), *caches.present


class DraftCaches:
    """The prefix in the graph's buffers, tree rows beside it.

    Attention is written out in two parts, prefix and tree, that meet in the softmax: joined keys and
    values would copy the prefix at every level. The `shared` form (batch 1) reads the L used rows of
    a buffer, the `static` form all rows under a mask.
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
        self.tree = dict[int, tuple[Tensor, Tensor]]()

    def append(self, key_value: Tensor) -> None:
        """Implement `RoundCaches.append`; padding rows are written too, and overwritten next round."""
        key, value = split_heads(key_value, self.past[0].shape[-1]).chunk(2, dim=1)
        key = rotary_embedding(key, *self.tables, self.past_length[:, None] + torch.arange(key.shape[2]))
        used = len(self.past) // 2
        new = [
            half
            for pair in zip(key.chunk(used, dim=1), value.chunk(used, dim=1), strict=True)
            for half in pair
        ]
        self.present = [
            tensor_scatter(past, rows, self.past_length) for past, rows in zip(self.past, new, strict=True)
        ]
        self.prefix, self.prefix_bias = self.present, None
        if self.form == "shared":
            length = cast(int, self.length.item())
            torch._check(length <= self.past[0].shape[2])  # or tracing would ask which is smaller
            self.prefix = [cache[:, :, :length] for cache in self.present]
        else:
            unused = torch.arange(self.past[0].shape[2]) >= self.length[:, None]
            zero = torch.zeros((), dtype=key.dtype)
            self.prefix_bias = zero.masked_fill(unused, float("-inf"))[:, None, None]  # [B, 1, 1, T]

    def attend(
        self, specialist: int, query: Tensor, level: int, key_value: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Implement `RoundCaches.attend`."""
        key, value = self.prefix[2 * specialist : 2 * specialist + 2]  # [B, G, T, D]
        kv_heads, head_dim = key.shape[1], key.shape[3]
        rows = query.shape[1]
        q = self._rotate(split_heads(query, head_dim), [level - 1] * rows)
        q = q.unflatten(1, (kv_heads, -1)).flatten(2, 3) * head_dim**-0.5  # [B, G, group heads * rows, D]
        scores = q @ key.mT
        if self.prefix_bias is not None:
            scores = scores + self.prefix_bias
        if key_value is None or bias is None:
            mixed = scores.softmax(-1) @ value
        else:
            tree_key, tree_value = self._tree_rows(specialist, key_value, level, bias.shape[-1])
            tree_bias = bias.repeat(1, q.shape[2] // rows, 1)[:, None]
            weights = torch.cat((q @ tree_key.mT + tree_bias, scores), dim=-1).softmax(-1)
            count = tree_key.shape[2]
            mixed = weights[..., :count] @ tree_value + weights[..., count:] @ value
        merged: Tensor = mixed.unflatten(2, (-1, rows)).permute(0, 3, 1, 2, 4).flatten(2)
        return merged

    def _tree_rows(self, specialist: int, key_value: Tensor, level: int, count: int) -> tuple[Tensor, Tensor]:
        """Return rotated keys and values `[B, G, count, D]` of all tree rows, the latest of them new."""
        rows, new = count // level, key_value.shape[1]
        key, value = split_heads(key_value, self.past[0].shape[-1]).chunk(2, dim=1)
        key = self._rotate(key, [row // rows for row in range(count - new, count)])
        if new < count:
            old_key, old_value = self.tree[specialist]
            key, value = torch.cat((old_key, key), dim=2), torch.cat((old_value, value), dim=2)
        self.tree[specialist] = key, value
        return key, value

    def _rotate(self, x: Tensor, offsets: list[int]) -> Tensor:
        """Rotate rows of `x` [B, heads, rows, D] that stand at L + offsets."""
        rotated: Tensor = rotary_embedding(x, *self.tables, self.length[:, None] + torch.tensor(offsets))
        return rotated


def export_drafter(
    drafter: Drafter,
    path: Path,
    *,
    cache_form: CacheForm,
    precision: Precision,
    capacity: int,
    tree: TreeShape,
    embed_rows: Tensor,
    head_rows: Tensor,
) -> None:
    """Write the draft graph to `path` and its weights to `path` + ".data".

    Args:
        drafter: float32 weights; they are read, not changed.
        path: the .onnx file to write.
        cache_form: "shared" (ONNX Runtime CPU, batch 1) or "static" (standard operators).
        precision: type of weights, caches and embeddings; scores are float32 always.
        capacity: rows a cache can hold; static dimension of the "static" form.
        tree: size of the drafted tree.
        embed_rows: `[draft_vocab, hidden]`, rows `drafter.draft_ids` of the target's embedding table.
        head_rows: `[draft_vocab, hidden]`, the same rows of the target's LM head; pass `embed_rows` again
            where the two are tied, and the graph holds one table.
    """
    drafting = TreeDrafting(drafter, tree, embed_rows, head_rows)
    if precision != "fp32":
        drafting = copy.deepcopy(drafting).to(getattr(torch, FLOAT[precision]))
    graph = DraftGraph(drafting, cache_form, capacity)
    static = {"shared": {"batch": 1}, "static": {"capacity": capacity}}[cache_form]
    export_graph(graph, draft_contract(drafter.config, tree, precision), path, static)
