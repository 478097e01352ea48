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

from poss_export.config import CacheForm, TargetConfig
from poss_export.targets.decoder import merge_heads, split_heads
from poss_export.targets.mixing import in_window, mix
from poss_export.targets.ops import group_query_attention, tensor_scatter

Tables = tuple[Tensor, Tensor]  # cosines and sines, each [positions, head_dim / 2]


class SharedCaches:
    """GroupQueryAttention of ONNX Runtime: past and present may be one buffer, written in place."""

    def __init__(
        self,
        config: TargetConfig,
        past: Sequence[Tensor],
        past_length: Tensor,
        position_ids: Tensor,
        tree_mask: Tensor,
        tables: Sequence[Tables],
    ) -> None:
        """Turn lengths and mask into what every layer needs; shapes as in the contract.

        `config` has a window where it is narrower than the caches; `tables` are those of its `ropes`.
        """
        self.config, self.past, self.present = config, past, list[Tensor]()
        seq, longest = position_ids.shape[1], past_length.max()
        lengths = ((past_length + (seq - 1)).to(torch.int32), (longest + seq).to(torch.int32))
        dtype = tables[0][0].dtype
        lowest = torch.finfo(dtype).min
        bias = torch.zeros((), dtype=dtype).masked_fill(~tree_mask, lowest)
        # Whatever is cached may be attended. With several cached lengths (a batch) S is 1, its bias all zero.
        biases = [F.pad(bias[:, None], (cached := cast(int, longest.item()), 0))]  # [batch, 1, seq, total]
        if config.window is not None:
            positions = torch.cat(
                (torch.arange(cached).expand(past_length.shape[0], -1), position_ids), dim=1
            )
            near = in_window(position_ids, positions, config.window)[:, None]
            biases.append(biases[0].masked_fill(~near, lowest))
        self.lengths, self.position_ids, self.tables, self.biases = lengths, position_ids, tables, biases

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend to the cache of `layer` and the new tokens."""
        past_key, past_value = self.past[2 * layer : 2 * layer + 2]
        tables, bias = self.config.of_layer(layer, self.tables), self.config.of_layer(layer, self.biases)
        mixed, *present = group_query_attention(
            *(query, key, value, past_key, past_value),
            *(*self.lengths, *tables, self.position_ids, bias),
            scale=self.config.attention_scale,
            cap=self.config.attention_cap,
        )
        self.present += present
        return mixed


class StaticCaches:
    """Standard ONNX only: TensorScatter into caches of static capacity, Attention under an explicit mask."""

    def __init__(
        self,
        config: TargetConfig,
        past: Sequence[Tensor],
        past_length: Tensor,
        position_ids: Tensor,
        tree_mask: Tensor,
        tables: Sequence[Tables],
    ) -> None:
        """Turn lengths and mask into what every layer needs; shapes as in the contract.

        `config` has a window where it is narrower than the caches; `tables` are those of its `ropes`.
        """
        self.config, self.past, self.present = config, past, list[Tensor]()
        self.past_length, self.position_ids, self.tables = past_length, position_ids, tables
        batch, seq = position_ids.shape
        capacity = past[0].shape[2]
        column = torch.arange(capacity) - past_length[:, None]  # [batch, capacity], 0 at the first new row
        new = column.clamp(0, seq - 1)[:, None].expand(batch, seq, capacity)
        cached = (column < 0)[:, None]
        allowed = tree_mask.gather(2, new) & (column < seq)[:, None]
        self.masks = [(cached | allowed)[:, None]]  # [batch, 1, seq, capacity]
        if config.window is not None:
            new_positions = position_ids.gather(1, column.clamp(0, seq - 1))
            positions = torch.where(column < 0, torch.arange(capacity), new_positions)
            self.masks.append(self.masks[0] & in_window(position_ids, positions, config.window)[:, None])
        if (dtype := tables[0][0].dtype) == torch.bfloat16:
            # TensorRT-RTX 1.7.1 builds no dynamic profile of a bool mask in bfloat16 (docs/engines.md).
            zero, lowest = torch.zeros((), dtype=dtype), torch.finfo(dtype).min
            self.masks = [zero.masked_fill(~mask, lowest) for mask in self.masks]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend to the cache of `layer` and the new tokens."""
        past_key, past_value = self.past[2 * layer : 2 * layer + 2]
        q, k, v = (split_heads(x, past_key.shape[-1]) for x in (query, key, value))
        tables, mask = self.config.of_layer(layer, self.tables), self.config.of_layer(layer, self.masks)
        keys = tensor_scatter(past_key, rotary_embedding(k, *tables, self.position_ids), self.past_length)
        values = tensor_scatter(past_value, v, self.past_length)
        self.present += [keys, values]
        q = rotary_embedding(q, *tables, self.position_ids)
        scale, cap = self.config.attention_scale, self.config.attention_cap
        return merge_heads(mix(q, keys, values, mask, scale=scale, cap=cap))


CACHE_FORMS: dict[CacheForm, type[SharedCaches] | type[StaticCaches]] = {
    "shared": SharedCaches,
    "static": StaticCaches,
}
