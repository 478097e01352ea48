"""ONNX operations that PyTorch lacks or says otherwise; in eager mode each function computes the same.

Shapes: B batch, S new tokens, T capacity, H query heads, G key/value heads, D head size.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from poss_export.targets.decoder import merge_heads, split_heads
from poss_export.targets.mixing import mix
from poss_export.targets.rope import rotate

OPSET = 24
_BLOCK = 256  # logits, about as many as there are blocks


def tensor_scatter(past: Tensor, update: Tensor, write_index: Tensor) -> Tensor:
    """Return `past` [B, G, T, D] with `update` [B, G, S, D] written from row `write_index` [B] on."""
    if torch.compiler.is_exporting():
        return torch.onnx.ops.symbolic(
            "TensorScatter",
            (past, update, write_index),
            {"axis": -2, "mode": "linear"},
            dtype=past.dtype,
            shape=past.shape,
            version=OPSET,
        )
    rows = write_index[:, None] + torch.arange(update.shape[2])  # [B, S]
    return past.scatter(2, rows[:, None, :, None].expand_as(update), update)


def group_query_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    last_index: Tensor,
    total_length: Tensor,
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor,
    bias: Tensor,
    scale: float | None = None,
    cap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotate, append to the caches and attend: ONNX Runtime's GroupQueryAttention.

    ONNX Runtime writes in place where the past and present buffers are one, and adds its own causal
    mask to `bias`: a tree's parents must come before their children.

    Args:
        query: `[B, S, H * D]`, not rotated.
        key: `[B, S, G * D]`, not rotated.
        value: `[B, S, G * D]`.
        past_key: `[B, G, T, D]`, rotated.
        past_value: `[B, G, T, D]`.
        last_index: int32 `[B]`, cache row of the last new token.
        total_length: int32 scalar, cached and new tokens, at most T.
        cos: `[positions, D / 2]`.
        sin: `[positions, D / 2]`.
        position_ids: int64 `[B, S]`; ONNX Runtime takes them as consecutive where nothing is cached.
        bias: `[B, 1, S, total_length]`, added to the scores.
        scale: of the scores; None: 1 / sqrt(D).
        cap: of the scores, before the bias.

    Returns:
        Mixed values `[B, S, H * D]`, present key and present value.
    """
    head_dim = past_key.shape[-1]
    if torch.compiler.is_exporting():
        inputs = (
            query,
            key,
            value,
            past_key,
            past_value,
            last_index,
            total_length,
            cos,
            sin,
            position_ids,
            bias,
        )
        attributes = {"num_heads": query.shape[-1] // head_dim, "kv_num_heads": past_key.shape[1]}
        special = {name: value for name, value in (("scale", scale), ("softcap", cap)) if value is not None}
        mixed, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            inputs,
            {**attributes, "do_rotary": 1, **special},
            dtypes=[query.dtype] * 3,
            shapes=[query.shape, past_key.shape, past_value.shape],
            version=1,
        )
        return mixed, present_key, present_value
    q, k, v = (split_heads(x, head_dim) for x in (query, key, value))
    tables = (cos[position_ids][:, None], sin[position_ids][:, None])
    first = last_index.long() - key.shape[1] + 1
    keys = tensor_scatter(past_key, rotate(k, *tables), first)
    values = tensor_scatter(past_value, v, first)
    total = int(total_length)
    mixed = mix(rotate(q, *tables), keys[:, :, :total], values[:, :, :total], bias, scale=scale, cap=cap)
    return merge_heads(mixed), keys, values


def multiply_by_table(x: Tensor, table: Tensor) -> Tensor:
    """Return logits `[B, R, V]` of `x` `[B, R, H]` by a `table` `[V, H]`, read as it lies: FusedMatMul.

    A Gemm does the same in two dimensions, and giving its result back its third one copies all logits.
    """
    if torch.compiler.is_exporting():
        return torch.onnx.ops.symbolic(
            "com.microsoft::FusedMatMul",
            (x, table),
            {"transB": 1},
            dtype=x.dtype,
            shape=(*x.shape[:-1], table.shape[0]),
            version=1,
        )
    return F.linear(x, table)


def likeliest(logits: Tensor) -> Tensor:
    """Return the index of the largest of `logits` `[B, R, V]`, int64 `[B, R]`; of equal ones the first.

    ONNX Runtime's ArgMax takes 80 us for 49,152 logits on a CPU. Its ReduceMax uses vector instructions: with
    the best block found by that, and ArgMax among the blocks and within the best one, it is 20 us.
    """
    size = math.gcd(logits.shape[-1], _BLOCK)
    blocks = logits.unflatten(-1, (-1, size))
    block = blocks.amax(-1).argmax(-1, keepdim=True)  # [B, R, 1]
    inside = blocks.gather(2, block[..., None].expand(-1, -1, -1, size)).argmax(-1)  # [B, R, 1]
    index: Tensor = (block * size + inside).squeeze(-1)
    return index
