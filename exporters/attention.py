"""The two cache forms: how a layer's new keys and values meet the cached ones.

Each is made once per call, hands `attend` to the decoder, and collects the caches that come out.
Cached keys are already rotated, so an accepted tree path is moved by plain copies.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.onnx.ops import rotary_embedding

from poss_export.config import CacheForm
from poss_export.targets.decoder import merge_heads, split_heads
from poss_export.targets.ops import group_query_attention, tensor_scatter


class SharedCaches:
    """GroupQueryAttention of ONNX Runtime: past and present may be one buffer, written in place."""

    def __init__(
        self,
        past: Sequence[Tensor],
        past_length: Tensor,
        position_ids: Tensor,
        tree_mask: Tensor,
        tables: tuple[Tensor, Tensor],
    ) -> None:
        """Turn lengths and mask into what every layer needs; shapes as in the contract."""
        self.past, self.present = past, list[Tensor]()
        seq, longest = position_ids.shape[1], past_length.max()
        lengths = ((past_length + (seq - 1)).to(torch.int32), (longest + seq).to(torch.int32))
        lowest = torch.finfo(tables[0].dtype).min
        bias = torch.zeros((), dtype=tables[0].dtype).masked_fill(~tree_mask, lowest)
        # Whatever is cached may be attended. With several cached lengths (a batch) S is 1, its bias all zero.
        bias = F.pad(bias[:, None], (cast(int, longest.item()), 0))  # [batch, 1, seq, total]
        self.shared = (*lengths, *tables, position_ids, bias)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend to the cache of `layer` and the new tokens."""
        past_key, past_value = self.past[2 * layer : 2 * layer + 2]
        mixed, *present = group_query_attention(query, key, value, past_key, past_value, *self.shared)
        self.present += present
        return mixed


class StaticCaches:
    """Standard ONNX only: TensorScatter into caches of static capacity, Attention under an explicit mask."""

    def __init__(
        self,
        past: Sequence[Tensor],
        past_length: Tensor,
        position_ids: Tensor,
        tree_mask: Tensor,
        tables: tuple[Tensor, Tensor],
    ) -> None:
        """Turn lengths and mask into what every layer needs; shapes as in the contract."""
        self.past, self.present = past, list[Tensor]()
        self.past_length, self.position_ids, self.tables = past_length, position_ids, tables
        batch, seq = position_ids.shape
        capacity = past[0].shape[2]
        column = torch.arange(capacity) - past_length[:, None]  # [batch, capacity], 0 at the first new row
        new = column.clamp(0, seq - 1)[:, None].expand(batch, seq, capacity)
        cached = (column < 0)[:, None]
        allowed = tree_mask.gather(2, new) & (column < seq)[:, None]
        self.mask = (cached | allowed)[:, None]  # [batch, 1, seq, capacity]
        if (dtype := tables[0].dtype) == torch.bfloat16:
            # TensorRT-RTX 1.7.1 builds no dynamic profile of a bool mask in bfloat16 (docs/engines.md).
            self.mask = torch.zeros((), dtype=dtype).masked_fill(~self.mask, torch.finfo(dtype).min)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend to the cache of `layer` and the new tokens."""
        past_key, past_value = self.past[2 * layer : 2 * layer + 2]
        q, k, v = (split_heads(x, past_key.shape[-1]) for x in (query, key, value))
        keys = tensor_scatter(
            past_key, rotary_embedding(k, *self.tables, self.position_ids), self.past_length
        )
        values = tensor_scatter(past_value, v, self.past_length)
        self.present += [keys, values]
        q = rotary_embedding(q, *self.tables, self.position_ids)
        grouped = q.shape[1] != keys.shape[1]
        return merge_heads(F.scaled_dot_product_attention(q, keys, values, self.mask, enable_gqa=grouped))


CACHE_FORMS: dict[CacheForm, type[SharedCaches] | type[StaticCaches]] = {
    "shared": SharedCaches,
    "static": StaticCaches,
}
